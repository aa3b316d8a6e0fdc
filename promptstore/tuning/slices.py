"""Parts of the rows that the gate judges on their own: one for each value of a column."""

from collections.abc import Sequence

from promptstore.errors import InvalidInputError
from promptstore.tuning.rows import Row

# Every slice has its figures in the log, where an attestation is small.
MOST_VALUES, MOST_SLICES, LONGEST_VALUE = 50, 100, 100


def slice_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The value of every row, column by column.

    Raises:
        InvalidInputError: a row has no such column, or the column is no slice: it has more than 50 values, or one of
            more than 100 characters; or all columns together have more than 100 values.
    """
    columns = {}
    for name in names:
        for row in rows:
            if name not in row:
                raise InvalidInputError(f"a slice is by column {name!r}; the columns are {', '.join(sorted(row))}")
        columns[name] = tuple(row[name] for row in rows)
    values = {name: set(column) for name, column in columns.items()}
    for name, found in values.items():
        if len(found) > MOST_VALUES or max(map(len, found), default=0) > LONGEST_VALUE:
            raise InvalidInputError(
                f"column {name!r} is no slice: {len(found)} values in {len(rows)} rows, the longest of "
                f"{max(map(len, found))} characters; slices are by at most {MOST_VALUES} short values"
            )
    if (count := sum(map(len, values.values()))) > MOST_SLICES:
        raise InvalidInputError(f"{', '.join(names)} make {count} slices, at most {MOST_SLICES} are judged; name fewer")
    return columns
