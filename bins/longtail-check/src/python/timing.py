"""The PyTorch way of what longtail-check times, on the same device, the same weights and the same states.

Reads a JSON list of tasks and prints a line of JSON for each result. A task of kind `ablation` changes the residual stream for a chunk of neurons and
positions, normalises and unembeds it with the centred `W_U`, and takes loss, entropy and four divergences of the logits, and once more of the logits
whose projection on the band's frequency direction keeps its clean value, as published scripts do (way `forward`). Way `closed-form` adds `D u` to the
logits that the clean residual stream gives instead. A task of kind `forward` times Hugging Face transformers.
"""

import json
import pathlib
import statistics
import sys
import time

import numpy
import torch
import torch.nn.functional as F


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def say(**result):
    print(json.dumps(result), flush=True)


class Layer:
    """What the ablation needs: states of some rows, activations, output weights, final LayerNorm, centred unembedding, frequencies."""

    def __init__(self, folder, device):
        read = lambda name: torch.from_numpy(numpy.load(folder / f"{name}.npy")).to(device)
        self.resid, self.act, self.mean, self.w_out = (read(name) for name in ("resid", "act", "mean", "w_out"))
        self.gamma, self.beta, self.targets = read("gamma"), read("beta"), read("targets")
        w_u = read("w_u").double()
        self.w_u = (w_u - w_u.mean(dim=0)).float()
        q, band = numpy.load(folder / "q.npy"), numpy.load(folder / "band.npy")
        v = numpy.zeros_like(q)
        v[band] = numpy.log(q)[band] - numpy.log(q)[band].mean()
        put = lambda values: torch.from_numpy(values.astype(numpy.float32)).to(device)
        self.band = torch.from_numpy(band).to(device)
        self.q, self.log_q, self.v = put(q), put(numpy.log(q)), put(v / numpy.linalg.norm(v))
        self.q_band, self.log_q_band = put(q[band] / q[band].sum()), put(numpy.log(q[band] / q[band].sum()))

    def logits(self, resid):
        return F.linear(F.layer_norm(resid, resid.shape[-1:], self.gamma, self.beta, 1e-5), self.w_u)


def by_elements(logits, targets, of):
    """Six measures, `[..., 6]`, as published code takes them."""
    log_p = F.log_softmax(logits, dim=-1)
    p = F.softmax(logits, dim=-1)
    band_logits = logits[..., of.band]
    log_p_band = F.log_softmax(band_logits, dim=-1)
    p_band = F.softmax(band_logits, dim=-1)
    return torch.stack(
        [
            -log_p.gather(-1, targets.expand(*log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1),
            -(p * log_p).sum(dim=-1),
            (p * (log_p - of.log_q)).sum(dim=-1),
            F.kl_div(log_p, of.log_q.expand_as(log_p), reduction="none", log_target=True).sum(dim=-1),
            (p_band * (log_p_band - of.log_q_band)).sum(dim=-1),
            F.kl_div(log_p_band, of.log_q_band.expand_as(log_p_band), reduction="none", log_target=True).sum(dim=-1),
        ],
        dim=-1,
    )


def by_products(logits, targets, of):
    """The same measures from as few passes as PyTorch allows."""
    log_p = F.log_softmax(logits, dim=-1)
    p = log_p.exp()
    log_p_band = log_p[..., of.band]
    log_p_band = log_p_band - torch.logsumexp(log_p_band, dim=-1, keepdim=True)
    p_band = log_p_band.exp()
    entropy = -torch.einsum("...v,...v->...", p, log_p)
    return torch.stack(
        [
            -log_p.gather(-1, targets.expand(*log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1),
            entropy,
            -entropy - p @ of.log_q,
            of.q @ of.log_q - log_p @ of.q,
            torch.einsum("...v,...v->...", p_band, log_p_band) - p_band @ of.log_q_band,
            of.q_band @ of.log_q_band - log_p_band @ of.q_band,
        ],
        dim=-1,
    )


def freeze(ablated, clean, of):
    """The ablated logits with their projection on the band's direction put back to the clean one."""
    return ablated + ((clean - ablated) @ of.v).unsqueeze(-1) * of.v


class Ways:
    """Changes of the measures of some neurons at some rows, `[neuron, row, variant, measure]`."""

    def __init__(self, of, way):
        self.of, self.way = of, way
        if way == "closed-form":
            centred = lambda x: x - x.mean(dim=-1, keepdim=True)
            self.w, self.x = centred(of.w_out), centred(of.resid)
            self.b = of.w_u @ of.beta

    def clean(self, rows):
        """What the rows of a chunk share."""
        of, y = self.of, self.of.targets[rows]
        if self.way == "forward":
            logits = of.logits(of.resid[rows])
            return logits, by_elements(logits, y, of), None, None
        x = self.x[rows]
        g = F.linear(x * of.gamma, of.w_u)
        squares = x.square().sum(dim=-1)
        logits = g / (squares / x.shape[-1] + 1e-5).sqrt().unsqueeze(-1) + self.b
        return logits, by_products(logits, y, of), g, squares

    def chunk(self, neurons, rows, shared):
        of, y = self.of, self.of.targets[rows]
        clean, before, g, squares = shared
        dose = (of.mean[neurons] - of.act[rows, neurons]).T  # [neuron, row]
        if self.way == "forward":
            ablated = of.logits(of.resid[rows] + dose.unsqueeze(-1) * of.w_out[neurons].unsqueeze(1))
            measure = by_elements
        else:
            x, w = self.x[rows], self.w[neurons]
            u = F.linear(w * of.gamma, of.w_u)
            changed = squares + 2 * dose * (w @ x.T) + dose.square() * w.square().sum(dim=-1, keepdim=True)
            scale = (changed / x.shape[-1] + 1e-5).sqrt().unsqueeze(-1)
            ablated = (g + dose.unsqueeze(-1) * u.unsqueeze(1)) / scale + self.b
            measure = by_products
        return torch.stack([measure(ablated, y, of) - before, measure(freeze(ablated, clean, of), y, of) - before], dim=2)


def ablation(task, device):
    folder = pathlib.Path(task["folder"])
    of = Layer(folder, device)
    n_rows, n_neurons = len(of.resid), of.w_out.shape[0]
    for way, per_chunk, positions, compare in task["ways"]:
        named = {"kind": "ablation", "task": task["name"], "way": way, "chunk": f"{per_chunk}x{positions}"}
        try:
            ways = Ways(of, way)
            rows = slice(0, min(positions, n_rows))
            shared = ways.clean(rows)
            ways.chunk(slice(0, per_chunk), rows, shared)
            started, pairs = clock(device), 0
            # Chunks of neurons of some rows, as many as fit the time; the first rows over and over.
            for number, n in enumerate(range(0, n_neurons, per_chunk)):
                chosen = slice(n, min(n + per_chunk, n_neurons))
                ways.chunk(chosen, rows, shared)
                pairs += (chosen.stop - chosen.start) * rows.stop
                # A GPU is not kept waiting for the clock after each chunk.
                if (device.type == "cpu" or number % 16 == 15) and clock(device) - started > task["seconds"]:
                    break
            say(**named, seconds=clock(device) - started, pairs=pairs)
            if compare:
                few = slice(0, task["compared"])
                values = ways.chunk(few, rows, shared).double().mean(dim=1).cpu().numpy()
                path = folder / f"changes-{way}.npy"
                numpy.save(path, values)
                say(kind="values", task=task["name"], way=way, path=str(path), rows=rows.stop)
        except Exception as error:  # Out of memory, mostly: the next may fit.
            say(**named, error=f"{type(error).__name__}: {error}"[:300])
        if device.type == "cuda":
            torch.cuda.empty_cache()


def forward(task, device):
    from transformers import GPTNeoXForCausalLM

    tokens = torch.from_numpy(numpy.load(task["tokens"])).to(device)
    for name in task["dtypes"]:
        named = {"kind": "forward", "task": task["name"], "dtype": name}
        try:
            dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
            model = GPTNeoXForCausalLM.from_pretrained(task["model"], dtype=dtype).eval().to(device)
            times = []
            for _ in range(task["repeat"] + 1):
                started = clock(device)
                logits = model(input_ids=tokens, use_cache=False).logits
                times.append(clock(device) - started)
            say(**named, seconds=statistics.median(times[1:]), tokens=tokens.numel())
            if name == "f32":
                ln_probs = torch.log_softmax(logits[:1, :-1].double(), dim=-1).gather(-1, tokens[:1, 1:].unsqueeze(-1))
                path = task["tokens"].replace(".npy", "-ln-probs.npy")
                numpy.save(path, ln_probs.reshape(-1).cpu().numpy())
                say(kind="ln_probs", task=task["name"], path=path)
            del model, logits
        except Exception as error:
            say(**named, error=f"{type(error).__name__}: {error}"[:300])


@torch.no_grad()
def main():
    device = torch.device(sys.argv[2])
    about = {"torch": torch.__version__}
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    say(kind="about", **about)
    for task in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        try:
            {"ablation": ablation, "forward": forward}[task["kind"]](task, device)
        except Exception as error:  # No transformers, mostly.
            say(kind=task["kind"], task=task["name"], error=f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
