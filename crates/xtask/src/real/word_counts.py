"""Token counts of general English: the words of wordfreq's large list, each with a leading space, weighted by their frequency.

Usage: word_counts.py large_en.msgpack.gz tokenizer.json N_TOKENS COUNTS.npy
"""

import gzip
import os
import sys

import msgpack
import numpy as np
from tokenizers import Tokenizer

WORDS = 1e9  # counts are per this many words


def main(words, tokenizer, n_tokens, out):
    tokenizer = Tokenizer.from_file(tokenizer)
    header, *bins = msgpack.load(gzip.open(words), raw=False)
    if header != {"format": "cB", "version": 1}:
        sys.exit(f"`{words}` is {header}, expected wordfreq's format cB, version 1: take wordfreq 3")
    counts = np.zeros(n_tokens)
    taken = left_out = 0
    for centibels, of_frequency in enumerate(bins):
        # In this list a digit stands for any: numbers are shapes, not words.
        spelled = [word for word in of_frequency if not any(c.isdigit() for c in word)]
        left_out += len(of_frequency) - len(spelled)
        taken += len(spelled)
        for encoding in tokenizer.encode_batch([" " + word for word in spelled], add_special_tokens=False):
            np.add.at(counts, encoding.ids, 10 ** (-centibels / 100) * WORDS)
    counts = np.rint(counts).astype(np.int64)
    seen = int((counts > 0).sum())
    part = f"{out}.{os.getpid()}.npy"
    np.save(part, counts)
    os.replace(part, out)
    print(
        f"{taken:,} words ({left_out} with digits left out) are {counts.sum():,} tokens of a billion words, "
        f"{seen:,} of {n_tokens:,} different ones: {out}"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
