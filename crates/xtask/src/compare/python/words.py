"""Surprisal of words under five conditions, one forward per word, context and condition.

The loop of the Python package of Liu et al. (2025, arXiv 2505.12822): the model runs once for each context, word and
condition, alone in its batch, with a hook on `mlp.dense_h_to_4h` of the last layer, and the first piece of the word is
scored. Compare with `cargo run --release -p neuron-ablate --example score_words`, which takes the same arguments and
scores the same token, and check that the values agree:

    python score_words.py --model examples/data/tiny-neox/step4000 --tokenizer examples/data/tiny-neox/tokenizer.json \
        --words examples/data/contexts/words.json --neurons 3,17,42,100,200 --threads 2 --out python.json

With `--random-70m` the weights are random, in the shape of Pythia-70M, and are saved to `--model` first.
Needs torch, transformers and safetensors.
"""

import argparse
import json
import pathlib
import shutil
import time

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

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


def save_random_70m(folder):
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8, vocab_size=50304,
        rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True, hidden_act="gelu", bos_token_id=0, eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--words", type=pathlib.Path, required=True)
    parser.add_argument("--neurons", required=True)
    parser.add_argument("--pairs", type=int, default=2000, help="at most; no pair is repeated, since ours would compute it once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--random-70m", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.random_70m and not args.model.exists():
        save_random_70m(args.model)
        shutil.copy(args.tokenizer, args.model / "tokenizer.json")
    model = GPTNeoXForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer))
    neurons = [int(n) for n in args.neurons.split(",")]
    words = json.loads(args.words.read_text())
    # The space belongs to the word, as the joint text of context and word has it.
    pairs = [(c["context"].rstrip(), " " + word) for word, contexts in sorted(words.items()) for c in contexts]
    pairs = pairs[: args.pairs]

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
    seconds = time.perf_counter() - started
    print(json.dumps({"pairs": len(pairs), "conditions": len(CONDITIONS), "seconds": round(seconds, 3)}))
    if args.out:
        args.out.write_text(json.dumps(values))


if __name__ == "__main__":
    main()
