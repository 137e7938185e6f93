"""Mean ablation of neurons of any layer in PyTorch, for `cargo xtask compare layers`.

As published scripts do it: a forward hook puts the neuron's mean in the place of its activation at every position, and transformers runs the whole model.
With `--copies` above 1 so many copies of the text run in one forward, each with another neuron. Of the logits the measures of `ablation.py` are taken,
by its faster way, and of the logits whose projection on the long-tail band's frequency direction keeps its clean value.

Writes a row per neuron with the columns of `neurons.parquet`. The time excludes imports, loading, and the mean activations.
"""

import time

import numpy
import torch
import torch.nn.functional as F
from transformers import GPTNeoXForCausalLM

import common
from ablation import FIRST_POSITION, MEASURES, VARIANTS, Vocabulary, by_products, freeze, table


class Layer:
    """The MLP of one layer, whose neurons are ablated."""

    def __init__(self, model, number, tokens):
        self.model, self.number = model, number
        self.projection = model.gpt_neox.layers[number].mlp.dense_4h_to_h
        w_u = model.get_output_embeddings().weight.double()
        self.w_u = (w_u - w_u.mean(dim=0)).float()
        kept = []
        hook = self.projection.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0][:, 1:].double().mean(dim=(0, 1))))
        self.run(tokens)
        hook.remove()
        self.mean = kept[0].float()  # over every position but that of BOS

    def run(self, tokens):
        """What the unembedding reads, `[text, position, d]`."""
        return self.model.gpt_neox(tokens, use_cache=False).last_hidden_state

    def ablated(self, tokens, neurons):
        """The same of copies of one text, each with a neuron set to its mean."""

        def set_to_mean(_module, inputs):
            act = inputs[0].clone()
            for copy, neuron in enumerate(neurons.tolist()):
                act[copy, :, neuron] = self.mean[neuron]
            return (act,)

        hook = self.projection.register_forward_pre_hook(set_to_mean)
        try:
            return self.run(tokens.expand(len(neurons), -1))
        finally:
            hook.remove()


def ablate(layer, voc, sequence, neurons, copies, positions):
    """Changes of the measures, `[neuron, row, variant, measure]`."""
    kept = slice(FIRST_POSITION, len(sequence) - 1)
    targets = sequence[FIRST_POSITION + 1 :]
    clean = layer.run(sequence.unsqueeze(0))[0, kept]
    changes = torch.empty(len(neurons), len(targets), len(VARIANTS), len(MEASURES))
    for n in range(0, len(neurons), copies):
        normed = layer.ablated(sequence.unsqueeze(0), neurons[n : n + copies])[:, kept]
        for t in range(0, len(targets), positions):
            at, y = slice(t, t + positions), targets[t : t + positions]
            before_logits = F.linear(clean[at], layer.w_u)
            before = by_products(before_logits, y, voc)
            for copy in range(len(normed)):
                logits = F.linear(normed[copy, at], layer.w_u)
                changes[n + copy, at, 0] = by_products(logits, y, voc) - before
                changes[n + copy, at, 1] = by_products(freeze(logits, before_logits, voc), y, voc) - before
    return changes


@torch.no_grad()
def main():
    parser = common.rows_parser(__doc__)
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--copies", type=int, default=1, help="copies of the text in one forward")
    parser.add_argument("--positions", type=int, default=32, help="positions whose logits are made at once")
    parser.add_argument("--neurons", type=int, default=24, help="the first so many")
    args = parser.parse_args()
    common.start(args)
    model = GPTNeoXForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokens = torch.from_numpy(numpy.load(args.token_file))
    layer = Layer(model, args.layer, tokens)
    voc = Vocabulary(args, model.config.vocab_size)
    neurons = torch.arange(args.neurons)
    started = time.perf_counter()
    changes = ablate(layer, voc, tokens[args.sequence], neurons, args.copies, args.positions)
    made = table(layer, neurons, changes, args.layer)
    common.finish(args, started, changes.shape[0] * changes.shape[1], made)


if __name__ == "__main__":
    main()
