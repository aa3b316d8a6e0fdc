"""Questions that people ask the catalogue."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, tuple_

from promptstore.catalog.models import AliasRow, MetricRow, MoveRow, VersionRow
from promptstore.core.instant import format_instant
from promptstore.core.state import AliasMove
from promptstore.errors import InvalidInputError

MOST_FOUND = 10_000


@dataclass(frozen=True, slots=True)
class MetricRange:
    """A metric known at publish and its bounds, both included; without bounds, any value."""

    name: str
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; a part that is `None` or empty does not matter.

    task: a name, or a pattern in which `*` stands for any text.
    base_model: the model's name, a pattern as for `task`, or the beginning of its weights' digest (6 digits or more).
    author: who published. since, until: when, the one included, the other not.
    data_digest: of the training data; its beginning is enough. alias: one that points at the version now.
    has_passed_gate: by the latest verdict.
    limit: the most to find, up to 10,000.
    """

    task: str | None = None
    metrics: Sequence[MetricRange] = ()
    base_model: str | None = None
    author: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    data_digest: str | None = None
    alias: str | None = None
    has_passed_gate: bool | None = None
    with_expired: bool = False
    limit: int = 100


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version as the catalogue knows it; of an expired one only what the log says.

    aliases: those that point at it now, by name.
    """

    task: str
    number: int
    digest: str
    at: str
    author: str
    gate: str | None
    is_expired: bool
    base_model: str | None
    num_virtual_tokens: int | None
    data_digest: str | None
    mlflow_run: str | None
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task}:{self.number}"


def find_versions(connection: Connection, query: Query) -> list[FoundVersion]:
    """The versions that match every part of `query`, newest first.

    Raises:
        InvalidInputError: `limit` is out of range, or a time has no time zone.
    """
    if not 1 <= query.limit <= MOST_FOUND:
        raise InvalidInputError(f"limit is {query.limit}, expected 1 to {MOST_FOUND}")
    newest_first = (VersionRow.commit.desc(), VersionRow.task, VersionRow.number.desc())
    wanted = (*_about_publish(query), *_about_now(query))
    found = select(VersionRow).where(*wanted).order_by(*newest_first).limit(query.limit)
    rows = [dict(row) for row in connection.execute(found).mappings()]
    keys = [(row["task"], row["number"]) for row in rows]
    aliases = _by_version(connection, AliasRow, AliasRow.alias, keys)
    metrics = _by_version(connection, MetricRow, MetricRow.name, keys, MetricRow.value)
    return [_found(row, aliases[key], metrics[key]) for row, key in zip(rows, keys, strict=True)]


def find_moves(connection: Connection, *, task: str | None, alias: str | None, limit: int) -> list[AliasMove]:
    """The newest moves of aliases, newest first."""
    wanted = [MoveRow.task == task] if task is not None else []
    wanted += [MoveRow.alias == alias] if alias is not None else []
    newest_first = (MoveRow.commit.desc(), MoveRow.task, MoveRow.position.desc())
    rows = connection.execute(select(MoveRow).where(*wanted).order_by(*newest_first).limit(limit)).mappings()
    return [AliasMove(**{name: value for name, value in row.items() if name != "position"}) for row in rows]


def _about_publish(query: Query) -> Iterable[ColumnElement[bool]]:
    if query.task is not None:
        yield _matches(VersionRow.task, query.task)
    if query.base_model is not None:
        by_name = _matches(VersionRow.model_name, query.base_model)
        is_digest = len(query.base_model) >= 6
        yield or_(by_name, VersionRow.weights_digest.startswith(query.base_model)) if is_digest else by_name
    if query.author is not None:
        yield VersionRow.actor == query.author
    if query.since is not None:
        yield VersionRow.at >= format_instant(query.since)
    if query.until is not None:
        yield VersionRow.at < format_instant(query.until)
    if query.data_digest is not None:
        yield VersionRow.data_digest.startswith(query.data_digest, autoescape=True)
    for metric in query.metrics:
        yield exists().where(_same_version(MetricRow), *_within(metric))


def _about_now(query: Query) -> Iterable[ColumnElement[bool]]:
    if not query.with_expired:
        yield VersionRow.expired_in.is_(None)
    if query.has_passed_gate is not None:
        has_passed = VersionRow.gate.is_not_distinct_from("pass")
        yield has_passed if query.has_passed_gate else ~has_passed
    if query.alias is not None:
        yield exists().where(_same_version(AliasRow), AliasRow.alias == query.alias)


def _same_version(table: type[AliasRow | MetricRow]) -> ColumnElement[bool]:
    return and_(table.task == VersionRow.task, table.number == VersionRow.number)


def _within(metric: MetricRange) -> Iterable[ColumnElement[bool]]:
    yield MetricRow.name == metric.name
    if metric.at_least is not None:
        yield MetricRow.value >= metric.at_least
    if metric.at_most is not None:
        yield MetricRow.value <= metric.at_most


def _matches(column: Any, pattern: str) -> ColumnElement[bool]:
    if "*" not in pattern:
        equal: ColumnElement[bool] = column == pattern
        return equal
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    like: ColumnElement[bool] = column.like(escaped, escape="\\")
    return like


def _by_version(
    connection: Connection,
    table: type[AliasRow | MetricRow],
    name: Any,
    keys: Sequence[tuple[str, int]],
    value: Any = None,
) -> defaultdict[tuple[str, int], dict[str, Any]]:
    """`value` by `name` of each version of `keys`."""
    found: defaultdict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    columns = [table.task, table.number, name, *([] if value is None else [value])]
    for start in range(0, len(keys), 500):
        wanted = tuple_(table.task, table.number).in_(keys[start : start + 500])
        for task, number, named, *rest in connection.execute(select(*columns).where(wanted)):
            found[task, number][named] = rest[0] if rest else None
    return found


def _found(row: Mapping[str, Any], aliases: Iterable[str], metrics: Mapping[str, float]) -> FoundVersion:
    return FoundVersion(
        task=row["task"],
        number=row["number"],
        digest=row["digest"],
        at=row["at"],
        author=row["actor"],
        gate=row["gate"],
        is_expired=row["expired_in"] is not None,
        base_model=row["model_name"],
        num_virtual_tokens=row["num_virtual_tokens"],
        data_digest=row["data_digest"],
        mlflow_run=row["mlflow_run"],
        aliases=tuple(sorted(aliases)),
        metrics=dict(metrics),
    )
