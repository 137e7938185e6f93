"""Makes the models and texts of the comparisons; what is there already stays.

    python inputs.py random  --data examples/data --out target/compare/random-70m --shape pythia-70m
    python inputs.py trained --data examples/data --out target/compare/trained-70m --steps 400
    python inputs.py tokens  --data examples/data --out target/compare/tokens.npy
    python inputs.py words   --data examples/data --out target/compare/words.json

`random` has the shape of a published model and random weights. `trained` has its width and vocabulary and two layers, and is trained for some minutes, because the
activations of random weights are not those of a language model. `tokens` are sequences of held-out text with the beginning-of-sequence token in front,
`words` are 2,000 words of that text with the sentence up to each.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import random
import re
import shutil
import time

import numpy

EOS = 0
SEED = 0


def tokenizer(data):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(data / "pythia" / "tokenizer.json"))


def pythia(width, heads, layers):
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=50304,
        rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True, hidden_act="gelu",
        bos_token_id=EOS, eos_token_id=EOS,
    )


def smollm2_135m():
    from transformers import LlamaConfig

    # 50,304 tokens instead of 49,152, so that the same tokens serve all models.
    return LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=50304,
        max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True, hidden_act="silu",
        bos_token_id=EOS, eos_token_id=EOS,
    )


SHAPES = {
    "pythia-70m": lambda: pythia(512, 8, 6),
    "pythia-410m": lambda: pythia(1024, 16, 24),
    "smollm2-135m": smollm2_135m,
}


def save(model, args):
    """Writes a checkpoint folder that is whole or not there."""
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    shutil.copy(args.data / "pythia" / "tokenizer.json", partial / "tokenizer.json")
    os.replace(partial, args.out)


def make_random(args):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    save(AutoModelForCausalLM.from_config(SHAPES[args.shape](), dtype=torch.float32), args)


def training_batches(args, batch, length):
    """Batches of the training text in a seeded order, a token between documents."""
    with gzip.open(args.data / "corpus" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    encode = tokenizer(args.data)
    shuffle = random.Random(SEED)
    buffer = []
    while True:
        shuffle.shuffle(documents)
        for start in range(0, len(documents), 64):
            for ids in encode(documents[start : start + 64], add_special_tokens=False).input_ids:
                buffer += [EOS, *ids]
            while len(buffer) >= batch * length:
                yield numpy.array(buffer[: batch * length]).reshape(batch, length)
                buffer = buffer[batch * length :]


def train(args):
    import torch
    from transformers import GPTNeoXForCausalLM

    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    model = GPTNeoXForCausalLM(pythia(512, 8, layers=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = 30
    # Up, then down in a line to a tenth.
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 1.0 - 0.9 * max(0, step - warm_up) / max(1, args.steps - warm_up))
    )
    losses, started = [], time.perf_counter()
    for step, batch in zip(range(args.steps), training_batches(args, batch=4, length=128)):
        ids = torch.from_numpy(batch)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        losses.append(loss.item())
        seconds = time.perf_counter() - started
        if step % 20 == 19:
            print(f"step {step + 1} of {args.steps}: loss {numpy.mean(losses[-20:]):.3f}, {seconds:.0f} s", flush=True)
        if args.minutes and seconds > 60 * args.minutes:
            print(f"stopped after {step + 1} steps", flush=True)
            break
    save(model.eval(), args)
    held_out = torch.from_numpy(sequences(args, count=8))
    with torch.no_grad():
        loss = model(input_ids=held_out, labels=held_out, use_cache=False).loss.item()
    record = {"steps": len(losses), "train_loss": float(numpy.mean(losses[-20:])), "held_out_loss": loss, "seconds": time.perf_counter() - started}
    (args.out / "training.json").write_text(json.dumps(record))
    print(json.dumps(record), flush=True)


def held_out(data):
    with open(data / "corpus" / "held-out.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def sequences(args, count, length=256):
    """Held-out text as sequences that begin with the beginning-of-sequence token and hold no other."""
    ids = [i for text in tokenizer(args.data)(held_out(args.data), add_special_tokens=False).input_ids for i in text]
    body = numpy.array(ids[: count * (length - 1)]).reshape(count, length - 1)
    return numpy.concatenate([numpy.full((count, 1), EOS), body], axis=1).astype(numpy.int64)


def make_tokens(args):
    numpy.save(args.out, sequences(args, count=8))


def make_words(args):
    """250 words with eight contexts each; a context is the sentence up to the word, at least four words of it."""
    contexts = collections.defaultdict(list)
    for text in held_out(args.data):
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
            for match in re.finditer(r"(?<= )[A-Za-z]{3,}(?=[ ,.;:!?])", sentence):
                context = sentence[: match.start()].rstrip()
                if context.count(" ") >= 3 and context not in contexts[match.group()]:
                    contexts[match.group()].append(context)
    enough = sorted(word for word, found in contexts.items() if len(found) >= 8)
    draw = random.Random(SEED)
    words = sorted(draw.sample(enough, 250))
    chosen = {word: [{"context": context} for context in draw.sample(contexts[word], 8)] for word in words}
    args.out.write_text(json.dumps(chosen, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["random", "trained", "tokens", "words"])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, help="stop the training after this time")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    {"random": make_random, "trained": train, "tokens": make_tokens, "words": make_words}[args.what](args)


if __name__ == "__main__":
    main()
