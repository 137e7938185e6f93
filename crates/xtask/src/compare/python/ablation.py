"""Mean ablation of last-layer neurons in PyTorch, for `cargo xtask compare ablation`.

`--way forward` is the way of the published scripts: for a chunk of neurons and positions the residual stream is changed, normalised and unembedded with
the centred `W_U`, and loss, entropy and both divergences from the token frequencies are taken of the logits, and once more of the logits whose
projection on the long-tail band's frequency direction keeps its clean value. `--way closed-form` skips the products: it adds `D u_n` to the logits
that the clean residual stream gives (docs/methods.md, section 2), and sums with products instead of element by element.

Writes a row per neuron with the columns of `neurons.parquet`. The time excludes imports, loading and the forward of the model, which the Rust side's
time includes.
"""

import time

import numpy
import pyarrow
import torch
import torch.nn.functional as F
from transformers import GPTNeoXForCausalLM

import common

MEASURES = ("loss", "entropy", "kl_model_freq", "kl_freq_model", "kl_model_freq_band", "kl_freq_model_band")
VARIANTS = ("total", "frozen_band")
FIRST_POSITION = 3


class Vocabulary:
    """Token frequencies, the long-tail band and its frequency direction."""

    def __init__(self, args, d_vocab):
        q = common.frequencies(args.counts, d_vocab)
        ranked = numpy.sort(q[: args.tokens])[::-1]
        low, high = ranked[args.band_rank - 1], ranked[int(args.tokens * args.band_percentile / 100)]
        inside = (q >= low) & (q <= high)
        inside[args.tokens :] = False
        v = numpy.where(inside, numpy.log(q) - numpy.log(q)[inside].mean(), 0.0)
        self.band = torch.from_numpy(numpy.flatnonzero(inside))
        self.q, self.log_q = (torch.from_numpy(x.astype(numpy.float32)) for x in (q, numpy.log(q)))
        q_band = q[inside] / q[inside].sum()
        self.q_band, self.log_q_band = (torch.from_numpy(x.astype(numpy.float32)) for x in (q_band, numpy.log(q_band)))
        self.v = torch.from_numpy((v / numpy.linalg.norm(v)).astype(numpy.float32))


class LastLayer:
    """What the ablation needs of the model: residual stream, activations, output weights, final LayerNorm, centred unembedding."""

    def __init__(self, model, tokens):
        kept = {}
        block = model.gpt_neox.layers[-1]
        hooks = [
            block.mlp.dense_4h_to_h.register_forward_pre_hook(lambda _m, inputs: kept.update(act=inputs[0])),
            model.gpt_neox.final_layer_norm.register_forward_pre_hook(lambda _m, inputs: kept.update(resid=inputs[0])),
        ]
        model.gpt_neox(tokens, use_cache=False)
        for hook in hooks:
            hook.remove()
        self.resid, self.act = kept["resid"], kept["act"]  # [sequence, position, width]
        self.mean = self.act[:, 1:].double().mean(dim=(0, 1)).float()  # every position but that of BOS
        self.w_out = block.mlp.dense_4h_to_h.weight.T.contiguous()  # [neuron, d]
        self.ln = model.gpt_neox.final_layer_norm
        w_u = model.get_output_embeddings().weight.double()
        self.w_u = (w_u - w_u.mean(dim=0)).float()

    def rows(self, tokens, sequence):
        """Residual stream, activations and target of each row of a sequence.

        No row has the beginning-of-sequence token at its position or as its target, since it stands at the front alone.
        """
        kept = slice(FIRST_POSITION, tokens.shape[1] - 1)
        return self.resid[sequence, kept], self.act[sequence, kept], tokens[sequence, FIRST_POSITION + 1 :]

    def logits(self, resid):
        return F.linear(F.layer_norm(resid, self.ln.normalized_shape, self.ln.weight, self.ln.bias, self.ln.eps), self.w_u)


def by_elements(logits, targets, voc):
    """The measures of MEASURES, `[..., 6]`, as published code takes them."""
    log_p = F.log_softmax(logits, dim=-1)
    p = F.softmax(logits, dim=-1)
    band_logits = logits[..., voc.band]
    log_p_band = F.log_softmax(band_logits, dim=-1)
    p_band = F.softmax(band_logits, dim=-1)
    return torch.stack(
        [
            -log_p.gather(-1, targets.expand(*log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1),
            -(p * log_p).sum(dim=-1),
            (p * (log_p - voc.log_q)).sum(dim=-1),
            F.kl_div(log_p, voc.log_q.expand_as(log_p), reduction="none", log_target=True).sum(dim=-1),
            (p_band * (log_p_band - voc.log_q_band)).sum(dim=-1),
            F.kl_div(log_p_band, voc.log_q_band.expand_as(log_p_band), reduction="none", log_target=True).sum(dim=-1),
        ],
        dim=-1,
    )


def by_products(logits, targets, voc):
    """The same measures from as few passes as PyTorch allows."""
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    log_p_band = log_p[..., voc.band]
    mass = torch.logsumexp(log_p_band, dim=-1, keepdim=True)
    log_p_band = log_p_band - mass
    p_band = log_p_band.exp()
    entropy = -torch.einsum("...v,...v->...", p, log_p)
    return torch.stack(
        [
            -log_p.gather(-1, targets.expand(*log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1),
            entropy,
            -entropy - p @ voc.log_q,
            voc.q @ voc.log_q - log_p @ voc.q,
            torch.einsum("...v,...v->...", p_band, log_p_band) - p_band @ voc.log_q_band,
            voc.q_band @ voc.log_q_band - log_p_band @ voc.q_band,
        ],
        dim=-1,
    )


def freeze(ablated, clean, voc):
    """The ablated logits with their projection on the band's direction put back to the clean one."""
    return ablated + ((clean - ablated) @ voc.v).unsqueeze(-1) * voc.v


def forward_way(layer, voc, rows, neurons, chunk):
    """Changes of the measures, `[neuron, row, variant, measure]`."""
    resid, act, targets = rows
    per_chunk, positions = chunk
    changes = torch.empty(len(neurons), len(resid), len(VARIANTS), len(MEASURES))
    for t in range(0, len(resid), positions):
        x, y = resid[t : t + positions], targets[t : t + positions]
        clean = layer.logits(x)
        before = by_elements(clean, y, voc)
        for n in range(0, len(neurons), per_chunk):
            chosen = neurons[n : n + per_chunk]
            dose = (layer.mean[chosen] - act[t : t + positions, chosen]).T  # [neuron, row]
            ablated = layer.logits(x + dose.unsqueeze(-1) * layer.w_out[chosen].unsqueeze(1))
            changes[n : n + per_chunk, t : t + positions, 0] = by_elements(ablated, y, voc) - before
            changes[n : n + per_chunk, t : t + positions, 1] = by_elements(freeze(ablated, clean, voc), y, voc) - before
    return changes


def closed_form_way(layer, voc, rows, neurons, chunk):
    """The same from `g`, `u` and `b`."""
    resid, act, targets = rows
    per_chunk, positions = chunk
    centred = lambda x: x - x.mean(dim=-1, keepdim=True)
    gamma, eps, width = layer.ln.weight, layer.ln.eps, resid.shape[-1]
    b = layer.w_u @ layer.ln.bias
    w = centred(layer.w_out[neurons])
    u = F.linear(w * gamma, layer.w_u)  # [neuron, V]
    changes = torch.empty(len(neurons), len(resid), len(VARIANTS), len(MEASURES))
    for t in range(0, len(resid), positions):
        x, y = centred(resid[t : t + positions]), targets[t : t + positions]
        g = F.linear(x * gamma, layer.w_u)
        squares = x.square().sum(dim=-1)
        clean = g / (squares / width + eps).sqrt().unsqueeze(-1) + b
        before = by_products(clean, y, voc)
        for n in range(0, len(neurons), per_chunk):
            chosen = neurons[n : n + per_chunk]
            dose = (layer.mean[chosen] - act[t : t + positions, chosen]).T
            v = w[n : n + per_chunk]
            changed = squares + 2 * dose * (v @ x.T) + dose.square() * v.square().sum(dim=-1, keepdim=True)
            scale = (changed / width + eps).sqrt().unsqueeze(-1)
            ablated = (g + dose.unsqueeze(-1) * u[n : n + per_chunk].unsqueeze(1)) / scale + b
            changes[n : n + per_chunk, t : t + positions, 0] = by_products(ablated, y, voc) - before
            changes[n : n + per_chunk, t : t + positions, 1] = by_products(freeze(ablated, clean, voc), y, voc) - before
    return changes


def table(layer, neurons, changes, number):
    """A row per neuron."""
    return effects(
        changes,
        component_name=[f"{number}.{n}" for n in neurons.tolist()],
        neuron=neurons.to(torch.int32).numpy(),
        mean_activation=layer.mean[neurons].double().numpy(),
    )


def effects(changes, **columns):
    """A row for each of what was changed: `columns`, and means of the changes over rows."""
    columns["rows"] = numpy.full(changes.shape[0], changes.shape[1], dtype=numpy.int32)
    changes = changes.double()
    for v, variant in enumerate(VARIANTS):
        for m, measure in enumerate(MEASURES):
            columns[f"{variant}.{measure}.mean_change"] = changes[:, :, v, m].mean(dim=1).numpy()
            columns[f"{variant}.{measure}.mean_abs_change"] = changes[:, :, v, m].abs().mean(dim=1).numpy()
    return pyarrow.table(columns)


def load(args):
    """The model, its sequences and its last layer."""
    common.start(args)
    model = GPTNeoXForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokens = torch.from_numpy(numpy.load(args.token_file))
    return model, tokens, LastLayer(model, tokens)


@torch.no_grad()
def main():
    parser = common.rows_parser(__doc__)
    parser.add_argument("--way", choices=["forward", "closed-form"], default="forward")
    parser.add_argument("--chunk", default="1x32", help="neurons x positions at once")
    parser.add_argument("--neurons", type=int, default=24, help="the first so many")
    args = parser.parse_args()
    model, tokens, layer = load(args)
    voc = Vocabulary(args, model.config.vocab_size)
    rows = layer.rows(tokens, args.sequence)
    neurons = torch.arange(args.neurons)
    chunk = tuple(int(n) for n in args.chunk.split("x"))
    way = {"forward": forward_way, "closed-form": closed_form_way}[args.way]
    started = time.perf_counter()
    changes = way(layer, voc, rows, neurons, chunk)
    made = table(layer, neurons, changes, model.config.num_hidden_layers - 1)
    common.finish(args, started, len(neurons) * len(rows[0]), made)


if __name__ == "__main__":
    main()
