"""Helper of `cargo xtask wheel --check`: two tables of `ablate-unigram`, row by row."""

import math
import sys

import pyarrow.parquet as pq

TOLERANCE = 1e-9
# The folder that each build read the bundled model from, which is another one for each.
FOLDERS = {"model"}


def close(a, b):
    """Whether two values are the same to rounding, and how far they are apart."""
    if isinstance(a, float) and isinstance(b, float):
        if math.isnan(a) and math.isnan(b):
            return True, 0.0
        return abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b)), abs(a - b)
    return a == b, 0.0


one, other = (pq.read_table(path) for path in sys.argv[1:])
if one.column_names != other.column_names or one.num_rows != other.num_rows:
    sys.exit(f"error: tables of {one.num_rows} and {other.num_rows} rows, columns {one.column_names} and {other.column_names}")
worst, where, differ = 0.0, "", []
for name in one.column_names:
    if name in FOLDERS:
        continue
    for row, (a, b) in enumerate(zip(one[name].to_pylist(), other[name].to_pylist())):
        same, apart = close(a, b)
        if not same:
            differ.append(f"`{name}` of row {row}: {a} and {b}")
        if apart > worst:
            worst, where = apart, f", in `{name}` of row {row}: {a} and {b}"
print(f"{one.num_rows} neurons, {one.num_columns} columns; largest difference {worst:.1e}{where}")
if differ:
    sys.exit(f"error: {len(differ)} values differ by more than {TOLERANCE:.0e}, the first in {differ[0]}")
