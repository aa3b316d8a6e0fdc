"""Options of the form name=value, and the gate's rules that are given so."""

import tomllib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.tuning.gate import GatePolicy

RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule", help="Of the gate, as in min_recall=0.8, slices=language or max_latency_ms=30; repeat for more."
    ),
]


def read_pairs(given: Iterable[str], option: str, example: str) -> dict[str, Any]:
    """`name=value` pairs; a value is what TOML would read, or text."""
    found: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise InvalidInputError(f"{option} {text!r}: expected name=value, as in {example}")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    return found


def read_policy(rules: Iterable[str] | None, **given: float | None) -> "GatePolicy":
    """What the gate asks. given: rules that have an option of their own, `None` if it was not used; `--rule` wins.

    Raises:
        InvalidInputError: no such rule, or a bad value.
    """
    from promptstore.tuning.gate import GatePolicy

    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    values |= read_pairs(rules or (), "--rule", "min_recall=0.8")
    if isinstance(columns := values.get("slices"), str):
        values["slices"] = columns.split(",")
    return GatePolicy.from_json(values)
