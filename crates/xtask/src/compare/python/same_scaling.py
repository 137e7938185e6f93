"""Compares the means that `scale_neuron.py` wrote with the `effects.parquet` of scale-neuron over the same rows; more than `--atol` apart is an error."""

import argparse
import json
import sys

import pyarrow.parquet


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--atol", type=float, required=True)
    args = parser.parse_args()
    ours = {}
    for row in pyarrow.parquet.read_table(args.ours).to_pylist():
        if row["targets"] == "all" and row["control"] is None:
            ours[row["scaled"], row["factor"], row["measure"]] = row["clean"] + row["change"]
    with open(args.theirs, encoding="utf-8") as file:
        theirs = json.load(file)
    missing = [row for row in theirs if (row["scaled"], row["factor"], row["measure"]) not in ours]
    if missing or not theirs:
        sys.exit(f"error: `{args.ours}` and `{args.theirs}` have nothing in common, or not all: {missing[:1]}")
    off = {tuple(row.values())[:3]: abs(ours[row["scaled"], row["factor"], row["measure"]] - row["mean"]) for row in theirs}
    where = max(off, key=lambda key: off[key] if off[key] == off[key] else float("inf"))
    print(json.dumps({"values": len(off), "largest_difference": off[where], "where": " ".join(map(str, where))}))
    if not off[where] <= args.atol:
        sys.exit(f"error: {where} differs by {off[where]:.1e}, allowed are {args.atol:.0e}")


if __name__ == "__main__":
    main()
