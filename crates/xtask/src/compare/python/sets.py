"""Sets of last-layer neurons set to their means together in PyTorch, for `cargo xtask compare sets`.

For a set and a chunk of positions what the neurons add to the residual stream is summed, the residual stream is changed by it, normalised and unembedded
with the centred `W_U`; the measures are those of `ablation.py`, by its faster way, and of the logits whose projection on the long-tail band's frequency
direction keeps its clean value too. The sets are the first 1, 2, 4, ... neurons.

Writes a row per set with the columns of `sets.parquet`. The time excludes imports, loading and the forward of the model, which the Rust side's time
includes.
"""

import time

import torch

import common
from ablation import MEASURES, VARIANTS, Vocabulary, by_products, effects, freeze, load


def change_sets(layer, voc, rows, sizes, positions):
    """Changes of the measures, `[set, row, variant, measure]`."""
    resid, act, targets = rows
    changes = torch.empty(len(sizes), len(resid), len(VARIANTS), len(MEASURES))
    for t in range(0, len(resid), positions):
        at, y = slice(t, t + positions), targets[t : t + positions]
        clean = layer.logits(resid[at])
        before = by_products(clean, y, voc)
        for i, size in enumerate(sizes):
            dose = layer.mean[:size] - act[at, :size]
            moved = layer.logits(resid[at] + dose @ layer.w_out[:size])
            changes[i, at, 0] = by_products(moved, y, voc) - before
            changes[i, at, 1] = by_products(freeze(moved, clean, voc), y, voc) - before
    return changes


@torch.no_grad()
def main():
    parser = common.rows_parser(__doc__)
    parser.add_argument("--sizes", required=True, help="of the sets, with commas")
    parser.add_argument("--positions", type=int, default=32, help="positions at once")
    args = parser.parse_args()
    model, tokens, layer = load(args)
    voc = Vocabulary(args, model.config.vocab_size)
    rows = layer.rows(tokens, args.sequence)
    sizes = [int(size) for size in args.sizes.split(",")]
    started = time.perf_counter()
    changes = change_sets(layer, voc, rows, sizes, args.positions)
    made = effects(changes, list=["selected"] * len(sizes), size=sizes, dose=["mean"] * len(sizes))
    common.finish(args, started, len(sizes) * len(rows[0]), made)


if __name__ == "__main__":
    main()
