"""What the scripts beside this one share: threads, token counts, and how a result is handed over."""

import argparse
import json
import pathlib
import resource
import time

import numpy
import torch


def parser(doc):
    """Arguments of every script that is timed."""
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True, help="folder of a checkpoint")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--out", type=pathlib.Path, help="where the values go")
    return args


def start(args):
    """Takes the number of threads, and the time."""
    torch.set_num_threads(args.threads)
    return time.perf_counter()


def report(seconds, units, **more):
    """Prints the one line that `cargo xtask compare` reads."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "units": units, "peak_kib": peak, **more}), flush=True)


def frequencies(path, d_vocab):
    """Token frequencies, each count plus one; rows without a count have none."""
    counts = numpy.load(path).astype(numpy.float64)
    counts = numpy.pad(counts, (0, max(0, d_vocab - len(counts))))[:d_vocab] + 1.0
    return counts / counts.sum()
