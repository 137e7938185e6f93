"""Forward passes of Hugging Face transformers, for `cargo xtask compare forward`: logits of every position of one batch, again and again.

The example `time_forward` of neox-core does the same. The time is the median of the repetitions.
"""

import json
import statistics
import time

import numpy
import torch
from transformers import AutoModelForCausalLM

import common


@torch.no_grad()
def main():
    parser = common.parser(__doc__)
    parser.add_argument("--token-file", required=True, help="sequences of token ids, .npy")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()
    common.start(args)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    flat = numpy.load(args.token_file).reshape(-1)[: args.batch * args.length]
    tokens = torch.from_numpy(flat).reshape(args.batch, args.length)
    times = []
    for _ in range(args.repeat + 1):
        started = time.perf_counter()
        logits = model(input_ids=tokens, use_cache=False).logits
        times.append(time.perf_counter() - started)
    common.report(statistics.median(times[1:]), tokens.numel())
    if args.out:
        ln_probs = torch.log_softmax(logits[:, :-1].double(), dim=-1).gather(-1, tokens[:, 1:].unsqueeze(-1))
        args.out.write_text(json.dumps(ln_probs.reshape(-1).tolist()))


if __name__ == "__main__":
    main()
