"""Joins tables of ablate-unigram and compute-surprisal: what the neurons of each set do to tokens, beside what the set does to words.

    pip install duckdb
    python3 examples/study/join_tables.py ABLATION/stepN/neurons.parquet SURPRISAL N

Neurons join by `layer` and `neuron`, sets by `step` and `intervention`.
"""

import sys

import duckdb

ablation, surprisal, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
joined = duckdb.sql(f"""
    WITH sets AS (      -- what the neurons of each set do to long-tail tokens, one by one
        SELECT s.intervention, s.neurons AS kind, count(*) AS neurons, avg(n.band_total_effect) AS effect_of_one
        FROM '{surprisal}/neurons.parquet' s JOIN '{ablation}' n USING (layer, neuron)
        WHERE s.step = {step} GROUP BY ALL
    ), words AS (       -- what each set does to words, every word once
        SELECT intervention, operation, avg(change) AS change FROM (
            SELECT intervention, operation, word, avg(change_nats) AS change
            FROM '{surprisal}/surprisal.parquet' WHERE step = {step} GROUP BY ALL)
        GROUP BY ALL
    )
    SELECT operation, kind, count(*) AS sets, max(sets.neurons) AS neurons, avg(effect_of_one) AS effect_of_one, avg(change) AS change_of_words
    FROM sets JOIN words USING (intervention) GROUP BY ALL ORDER BY operation, effect_of_one DESC
""")
if joined.shape[0] == 0:
    sys.exit(f"no neuron of step {step} is in both `{surprisal}/neurons.parquet` and `{ablation}`")
print(joined)
