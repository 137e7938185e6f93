"""Surprisal of words under five conditions, one forward per word, context and condition, for `cargo xtask compare words`.

The loop of the Python package of Liu et al. (2025, arXiv 2505.12822): the model runs once for each context, word and condition, alone in its batch,
with a hook on `mlp.dense_h_to_4h` of the last layer, and the first piece of the word is scored. The example `score_words` of neuron-ablate scores the
same tokens. The time includes tokenization, not imports and loading.
"""

import json
import pathlib
import time

import torch
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

import common

CONDITIONS = ("base", "zero", "full", "layer-mean", "scaled-2")


def change(condition, neurons):
    def hook(_module, _inputs, output):
        output = output.clone()
        if condition == "zero":
            output[..., neurons] = 0.0
        elif condition == "full":
            output[..., neurons] = 1.0
        elif condition == "layer-mean":
            output[..., neurons] = output.mean(dim=-1, keepdim=True)
        elif condition == "scaled-2":
            output[..., neurons] *= 2.0
        return output

    return hook


@torch.no_grad()
def main():
    parser = common.parser(__doc__)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--words", type=pathlib.Path, required=True)
    parser.add_argument("--neurons", required=True)
    parser.add_argument("--pairs", type=int, default=2000, help="at most")
    parser.add_argument("--every", type=int, default=1, help="only each so many of them")
    args = parser.parse_args()
    common.start(args)
    model = GPTNeoXForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer))
    neurons = [int(n) for n in args.neurons.split(",")]
    words = json.loads(args.words.read_text())
    # The space belongs to the word, as the joint text of context and word has it.
    pairs = [(c["context"].rstrip(), " " + word) for word, contexts in sorted(words.items()) for c in contexts]
    pairs = pairs[: args.pairs][:: args.every]

    values, started = [], time.perf_counter()
    for condition in CONDITIONS:
        handle = None
        if condition != "base":
            handle = model.gpt_neox.layers[-1].mlp.dense_h_to_4h.register_forward_hook(change(condition, neurons))
        for context, word in pairs:
            alone = len(tokenizer(context).input_ids)
            ids = tokenizer(context + word, return_tensors="pt").input_ids
            scored = min(alone, ids.shape[1] - 1)
            logits = model(input_ids=ids).logits
            values.append(-torch.log_softmax(logits[0, scored - 1], dim=-1)[ids[0, scored]].item())
        if handle is not None:
            handle.remove()
    common.report(time.perf_counter() - started, len(values))
    if args.out:
        args.out.write_text(json.dumps(values))


if __name__ == "__main__":
    main()
