"""The forward pass of benches/forward.rs in Hugging Face transformers (torch, CPU, f32)."""

import statistics
import time

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

torch.manual_seed(0)
config = GPTNeoXConfig(
    vocab_size=50304, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
    num_attention_heads=8, max_position_embeddings=2048, rotary_pct=0.25,
)
model = GPTNeoXForCausalLM(config).eval()
tokens = torch.randint(0, 50000, (4, 256))


def measure(name, run):
    run()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    print(f"{name}: median {1e3 * statistics.median(times):.0f} ms, least {1e3 * min(times):.0f} ms")


with torch.no_grad():
    measure("logits", lambda: model(tokens, use_cache=False).logits)
    measure("residual", lambda: model.gpt_neox(tokens, use_cache=False).last_hidden_state)
