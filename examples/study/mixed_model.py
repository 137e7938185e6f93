"""Mixed models of what switching off neurons does to the surprisal of words, on a table of compute-surprisal.

    pip install pandas pyarrow statsmodels
    python3 examples/study/mixed_model.py outputs/compute-surprisal/surprisal.parquet [OPERATION]

What is explained is the change of a word's surprisal in nats where the selected neurons are changed, minus the mean of the same change under random
control sets: one value for each word and context, at the last step. Words and documents are crossed random effects (Baayen, Davidson & Bates 2008).
"""

import sys

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

path, operation = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "mean"
table = pd.read_parquet(path)
last = table[(table.step == table.step.max()) & (table.operation == operation)]
if last.empty:
    sys.exit(f"{path}: no row of the operation `{operation}`; there are {', '.join(table.operation.unique())}")

# A row for each word and context, with the change under the selected neurons and the mean over the draws of random ones.
context = ["word", "context_id"]
of = {kind: last[last.neurons == kind].groupby(context).change_nats.mean() for kind in ["selected", "random"]}
rows = last[last.neurons == "selected"].set_index(context)
rows["excess"] = of["selected"] - of["random"]
rows = rows.reset_index().dropna(subset=["excess", "zipf", "document"])
if rows.empty:
    sys.exit(f"{path}: no word has an excess, a frequency and a document: are there random controls, and `zipf` in the contexts?")

# In standard deviations, so that coefficients are nats per standard deviation.
rows["log_context"] = np.log(rows.context_tokens.clip(lower=1))
for name in ["zipf", "pieces", "log_context", "base_nats", "base_entropy_nats"]:
    spread = rows[name].std()
    rows[name] = (rows[name] - rows[name].mean()) / (spread if spread > 0 else 1)
rows["all"] = 1  # one group, so that words and documents are crossed as variance components
model = smf.mixedlm(
    "excess ~ zipf + pieces + log_context + base_nats + base_entropy_nats",
    rows,
    groups="all",
    re_formula="0",
    vc_formula={"word": "0 + C(word)", "document": "0 + C(document)"},
)
fit = model.fit()
print(f"step {rows.step.iloc[0]}, `{operation}`: {len(rows)} contexts of {rows.word.nunique()} words in {rows.document.nunique()} documents")
print(fit.summary())
