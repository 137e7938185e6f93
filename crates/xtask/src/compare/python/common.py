"""What the scripts beside this one share: threads, token counts, and how a result is handed over."""

import argparse
import json
import pathlib
import resource
import time

import numpy
import pyarrow.parquet
import torch


def parser(doc):
    """Arguments of every script that is timed."""
    args = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=pathlib.Path, required=True, help="folder of a checkpoint")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--out", type=pathlib.Path, help="where the values go")
    return args


def rows_parser(doc):
    """The same, and those of every script that measures the rows of a sequence."""
    args = parser(doc)
    args.add_argument("--token-file", required=True, help="sequences of token ids, .npy")
    args.add_argument("--counts", required=True, help="token counts, .npy")
    args.add_argument("--tokens", type=int, default=50277, help="tokens of the tokenizer; rows past them are never in the band")
    args.add_argument("--band-rank", type=int, required=True, help="rank of the rarest token in the band")
    args.add_argument("--band-percentile", type=float, required=True, help="rank percentile of its most frequent token")
    args.add_argument("--sequence", type=int, default=0)
    return args


def start(args):
    """Takes the number of threads, and the time."""
    torch.set_num_threads(args.threads)
    return time.perf_counter()


def report(seconds, units, **more):
    """Prints the one line that `cargo xtask compare` reads."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "units": units, "peak_kib": peak, **more}), flush=True)


def finish(args, started, units, table):
    """Reports the time since `started`, and writes the table."""
    report(time.perf_counter() - started, units)
    if args.out:
        pyarrow.parquet.write_table(table, args.out)


def frequencies(path, d_vocab):
    """Token frequencies, each count plus one; rows without a count have none."""
    counts = numpy.load(path).astype(numpy.float64)
    counts = numpy.pad(counts, (0, max(0, d_vocab - len(counts))))[:d_vocab] + 1.0
    return counts / counts.sum()
