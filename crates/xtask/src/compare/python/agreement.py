"""Compares two tables with a row per neuron: every column of effects that both have, for the neurons that both have.

Prints the largest difference; above `--atol`, or where nothing can be compared, it is an error.
"""

import argparse
import json
import sys

import numpy
import pyarrow.parquet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--atol", type=float, required=True)
    args = parser.parse_args()
    ours, theirs = (pyarrow.parquet.read_table(path) for path in (args.ours, args.theirs))
    place = {neuron: i for i, neuron in enumerate(ours["neuron"].to_pylist())}
    both = [(place[n], i) for i, n in enumerate(theirs["neuron"].to_pylist()) if n in place]
    columns = [name for name in theirs.column_names if name.endswith("_change") and name in ours.column_names]
    if not both or not columns:
        sys.exit(f"error: `{args.ours}` and `{args.theirs}` have no neurons or no columns in common")
    at, of = numpy.array(both).T
    if ours["rows"].to_numpy()[at].tolist() != theirs["rows"].to_numpy()[of].tolist():
        sys.exit("error: the two tables are not means over the same number of rows")
    worst = {name: float(numpy.abs(ours[name].to_numpy()[at] - theirs[name].to_numpy()[of]).max()) for name in columns}
    largest = max(worst, key=lambda name: worst[name] if worst[name] == worst[name] else numpy.inf)
    print(json.dumps({"neurons": len(both), "columns": len(columns), "largest_difference": worst[largest], "where": largest}))
    if not worst[largest] <= args.atol:
        sys.exit(f"error: column `{largest}` differs by {worst[largest]:.1e} nats, allowed are {args.atol:.0e}")


if __name__ == "__main__":
    main()
