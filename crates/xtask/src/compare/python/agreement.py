"""Compares two tables of effects: every column of changes that both have, for what both changed; controls are left out.

Prints the largest difference; above `--atol`, or where nothing can be compared, it is an error.
"""

import argparse
import json
import sys

import pyarrow.parquet

# What tells the rows of a table apart: of neurons, of sets, and of what is scaled.
KEYS = ("neuron", "list", "size", "dose", "scaled", "factor", "targets", "measure")


def effects(path, keys):
    """The rows by their keys."""
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {tuple(row[key] for key in keys): row for row in rows if row.get("control") is None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("theirs")
    parser.add_argument("--atol", type=float, required=True)
    args = parser.parse_args()
    names = [pyarrow.parquet.read_schema(path).names for path in (args.ours, args.theirs)]
    common = [name for name in names[1] if name in names[0]]
    keys = [name for name in common if name in KEYS]
    columns = [name for name in common if name == "change" or name.endswith("_change")]
    ours, theirs = effects(args.ours, keys), effects(args.theirs, keys)
    both = [key for key in theirs if key in ours]
    if not both or not columns:
        sys.exit(f"error: `{args.ours}` and `{args.theirs}` have no rows or no columns in common")
    if any(ours[key]["rows"] != theirs[key]["rows"] for key in both):
        sys.exit("error: the two tables are not means over the same number of rows")
    off = {(column, *key): abs(ours[key][column] - theirs[key][column]) for column in columns for key in both}
    # One that is not a number is the largest.
    where = max(off, key=lambda at: off[at] if off[at] == off[at] else float("inf"))
    place = " ".join(map(str, where))
    print(json.dumps({"rows": len(both), "columns": len(columns), "largest_difference": off[where], "where": place}))
    if not off[where] <= args.atol:
        sys.exit(f"error: `{place}` differs by {off[where]:.1e} nats, allowed are {args.atol:.0e}")


if __name__ == "__main__":
    main()
