"""How results leave the command line: one line per result for people, one JSON value per line for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHORT_DIGEST = 12


def emit(
    values: Iterable[Mapping[str, Any]], *, as_json: bool, columns: Sequence[str] = (), short: str | None = None
) -> None:
    """Print results on stdout: JSON lines, or a table of `columns` (all of them if none are named).

    short: a column of digests, of which a table shows the beginning.
    """
    if as_json:
        for value in values:
            print(json.dumps(value, ensure_ascii=False, default=str))
        return
    rows = [{**row, short: row[short][:SHORT_DIGEST]} if short else row for row in values]
    if rows:
        _print_table(rows, columns or list(rows[0]))


def emit_one(value: Mapping[str, Any], line: str, *, as_json: bool) -> None:
    """Print one result: its JSON, or the sentence that says it."""
    print(json.dumps(value, ensure_ascii=False, default=str) if as_json else line)


def note(message: str) -> None:
    """Say something about progress on stderr, where it cannot disturb a pipe."""
    print(message, file=sys.stderr, flush=True)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    for line in [list(columns), *cells]:
        padded = [
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{name}={_cell(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(_cell(each) for each in value)
        case _:
            return str(value).replace("\n", " ")
