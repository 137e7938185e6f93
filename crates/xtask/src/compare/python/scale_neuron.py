"""Rows of `W_U` and output weights of neurons scaled in the null space of common tokens in PyTorch, for `cargo xtask compare scale-neuron`.

The null space and the changes of weights are those of docs/methods.md, section 8, by other code. Every change moves the logits of a chunk of rows in
proportion to a factor (rows of `W_U`), or with the scale of the final LayerNorm (output weights); of each vector of logits the measures are taken as
published code takes them, element by element, and added up over rows.

Writes a row per change, factor and measure with the columns of `effects.parquet`: the mean change over all rows. The time excludes imports, loading, the null space and the forward of the model.
"""

import time

import numpy
import pyarrow
import torch
import torch.nn.functional as F

import common
from ablation import load

MEASURES = ("loss", "rare_mass", "top1", "top5", "entropy", "kl_clean_scaled", "kl_scaled_clean", "jensen_shannon")


def null_space(model, q, args):
    """`W_U` as the space sees it, centred and with gamma folded in, and an orthonormal basis of the space, in f64."""
    gamma = model.gpt_neox.final_layer_norm.weight.double()
    w_u = model.get_output_embeddings().weight.double()
    seen = (w_u - w_u.mean(dim=0)) * gamma
    seen = seen - seen.mean(dim=1, keepdim=True)
    k = int(len(q) * args.percent / 100)
    common_ids = numpy.argsort(-q[: args.tokens], kind="stable")[:k].copy()
    _, singular, v = torch.linalg.svd(seen[common_ids], full_matrices=False)
    shares = singular.square().cumsum(0) / singular.square().sum()
    rank = int((shares < args.variance).sum()) + 1
    beyond = v[rank:]
    # The direction of ones is seen by no token.
    beyond = beyond - beyond.mean(dim=1, keepdim=True)
    _, _, basis = torch.linalg.svd(beyond, full_matrices=False)
    return seen, basis[: len(seen[0]) - 1 - rank]


def rare_tokens(q, args):
    """Ids of the band, and how strongly the logarithmic law scales each."""
    ranked = numpy.sort(q[: args.tokens])[::-1]
    low, high = ranked[args.band_rank - 1], ranked[int(args.tokens * args.band_percentile / 100)]
    ids = numpy.flatnonzero((q[: args.tokens] >= low) & (q[: args.tokens] <= high))
    return torch.from_numpy(ids), torch.from_numpy(numpy.log(high / q[ids]) / numpy.log(high / q[ids].min()))


def measure(logits, clean_log_p, targets, rare):
    """The measures of MEASURES, `[row, 8]`."""
    log_p = F.log_softmax(logits, dim=-1)
    p, clean_p = log_p.exp(), clean_log_p.exp()
    of_target = log_p.gather(-1, targets.unsqueeze(-1))
    rank = (log_p > of_target).sum(dim=-1)
    log_m = torch.log((p + clean_p) / 2)
    return torch.stack(
        [
            -of_target.squeeze(-1),
            p[:, rare].sum(dim=-1),
            (rank < 1).float(),
            (rank < 5).float(),
            -(p * log_p).sum(dim=-1),
            (clean_p * (clean_log_p - log_p)).sum(dim=-1),
            (p * (log_p - clean_log_p)).sum(dim=-1),
            0.5 * (p * (log_p - log_m) + clean_p * (clean_log_p - log_m)).sum(dim=-1),
        ],
        dim=-1,
    )


@torch.no_grad()
def main():
    parser = common.rows_parser(__doc__)
    parser.add_argument("--percent", type=float, default=5.0, help="per cent of the vocabulary that counts as common")
    parser.add_argument("--variance", type=float, default=0.95)
    parser.add_argument("--neurons", required=True, help="of the last layer, with commas")
    parser.add_argument("--factors", required=True, help="with commas")
    parser.add_argument("--chunk", type=int, default=32, help="positions at once")
    args = parser.parse_args()
    model, tokens, layer = load(args)
    gamma, beta, eps = layer.ln.weight, layer.ln.bias, layer.ln.eps
    q = common.frequencies(args.counts, model.config.vocab_size)
    seen, basis = null_space(model, q, args)
    rare, strengths = rare_tokens(q, args)
    rows_change = (((seen[rare] @ basis.T) * strengths.unsqueeze(1)) @ basis / gamma.double()).float()
    neurons = torch.tensor([int(n) for n in args.neurons.split(",")])
    w = layer.w_out[neurons].double()
    w = w - w.mean(dim=1, keepdim=True)
    neurons_change = (w @ basis.T @ basis).float()
    factors = [float(f) for f in args.factors.split(",")]

    resid, act, targets = layer.rows(tokens, args.sequence)
    sums = {name: torch.zeros(len(factors), len(MEASURES), dtype=torch.float64) for name in ("rows", "neurons")}
    started = time.perf_counter()
    for t in range(0, len(resid), args.chunk):
        x, a, y = resid[t : t + args.chunk], act[t : t + args.chunk], targets[t : t + args.chunk]
        clean = layer.logits(x)
        clean_log_p = F.log_softmax(clean, dim=-1)
        before = measure(clean, clean_log_p, y, rare)
        normed = F.layer_norm(x, layer.ln.normalized_shape, gamma, beta, eps)
        u = torch.zeros_like(clean)
        u[:, rare] = normed @ rows_change.T
        delta = a[:, neurons] @ neurons_change
        for i, factor in enumerate(factors):
            of_factor = {"rows": clean + (factor - 1) * u, "neurons": layer.logits(x + (factor - 1) * delta)}
            for name, moved in of_factor.items():
                sums[name][i] += (measure(moved, clean_log_p, y, rare) - before).double().sum(dim=0)
    means = [
        {"scaled": name, "factor": factor, "targets": "all", "measure": measure, "rows": len(resid), "change": float(of_name[i, m] / len(resid))}
        for name, of_name in sums.items()
        for i, factor in enumerate(factors)
        for m, measure in enumerate(MEASURES)
    ]
    common.finish(args, started, len(resid) * len(factors) * len(sums), pyarrow.Table.from_pylist(means))


if __name__ == "__main__":
    main()
