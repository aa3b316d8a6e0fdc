"""What a benchmark says: a number, its unit, the target it is held against, and the command that measured it."""

import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMPARISONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt, "==": operator.eq}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. target: as in `>= 3.0`, empty where the number is only reported; holds: `None` then."""

    name: str
    value: float
    unit: str
    target: str
    holds: bool | None
    command: str


def measured(name: str, value: float, unit: str, *, target: str = "", command: str) -> Measurement:
    """A measurement that is compared with its own target: a comparison sign, a blank, a number."""
    holds = None
    if target:
        sign, bound = target.split()
        holds = bool(COMPARISONS[sign](value, float(bound)))
    return Measurement(name, round(value, 6), unit, target, holds, command)


def keep(rows: Sequence[Measurement], path: Path) -> list[Measurement]:
    """Put the rows in place of those of the same name in the file at `path`; all that are in it now."""
    kept: dict[str, Measurement] = {}
    if path.exists():
        kept = {row["name"]: Measurement(**row) for row in json.loads(path.read_bytes())}
    kept |= {row.name: row for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in kept.values()], indent=2) + "\n", encoding="utf-8")
    return list(kept.values())


def report(rows: Sequence[Measurement], path: Path) -> None:
    """Print the rows as a table, with all that the file at `path` says of them."""
    table = Table("name", "value", "unit", "target", "holds", "command")
    for row in rows:
        holds = "" if row.holds is None else "yes" if row.holds else "NO"
        table.add_row(row.name, f"{row.value:g}", row.unit, row.target, holds, row.command)
    Console(width=160).print(table)
    Console().print(f"written to {path}")
