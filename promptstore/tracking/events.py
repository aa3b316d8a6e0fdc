"""What is said about runs, as values that can be sent now or kept for later."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from promptstore.core.fields import Fields
from promptstore.errors import CorruptError
from promptstore.tracking.port import DatasetContext, DatasetRecord, RunHeader, RunStatus

MAX_POINTS = 1000


class Point(NamedTuple):
    """One measurement. at_ms: Unix time in milliseconds, when it was made, so that sending it twice changes nothing."""

    name: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Comes before everything else of its run; saying it again is harmless."""

    header: RunHeader
    at_ms: int

    @property
    def run(self) -> str:
        return self.header.key


@dataclass(frozen=True, slots=True)
class ParamsLogged:
    run: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class MetricsLogged:
    run: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class TagsSet:
    run: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DatasetLogged:
    run: str
    dataset: DatasetRecord
    context: DatasetContext


@dataclass(frozen=True, slots=True)
class ArtifactLogged:
    run: str
    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class RunEnded:
    run: str
    status: RunStatus
    at_ms: int


Event = RunStarted | ParamsLogged | MetricsLogged | TagsSet | DatasetLogged | ArtifactLogged | RunEnded


def merged(events: Iterable[Event]) -> list[Event]:
    """The same events with each run's measurements gathered into as few as the server takes at once."""
    result: list[Event] = []
    open_at: dict[str, int] = {}
    points: dict[int, list[Point]] = {}
    for event in events:
        if not isinstance(event, MetricsLogged):
            result.append(event)
            continue
        for point in event.points:
            at = open_at.get(event.run)
            if at is None or len(points[at]) == MAX_POINTS:
                at = open_at[event.run] = len(result)
                points[at] = []
                result.append(event)
            points[at].append(point)
    for at, gathered in points.items():
        result[at] = MetricsLogged(result[at].run, tuple(gathered))
    return result


def event_to_json(event: Event) -> dict[str, Any]:
    match event:
        case RunStarted(header, at_ms):
            return {
                "event": "run_started",
                "key": header.key,
                "experiment": header.experiment,
                "name": header.name,
                "parent": header.parent,
                "tags": dict(header.tags),
                "at_ms": at_ms,
            }
        case ParamsLogged(run, values):
            return {"event": "params", "run": run, "values": dict(values)}
        case MetricsLogged(run, points):
            # JSON has no NaN: every value goes as text.
            return {
                "event": "metrics",
                "run": run,
                "points": [[p.name, repr(p.value), p.step, p.at_ms] for p in points],
            }
        case TagsSet(run, values):
            return {"event": "tags", "run": run, "values": dict(values)}
        case DatasetLogged(run, dataset, context):
            return {
                "event": "dataset",
                "run": run,
                "name": dataset.name,
                "digest": dataset.digest,
                "source": dataset.source,
                "num_rows": dataset.num_rows,
                "fields": list(dataset.fields),
                "context": context,
            }
        case ArtifactLogged(run, path, data):
            return {"event": "artifact", "run": run, "path": path, "base64": base64.b64encode(data).decode()}
        case RunEnded(run, status, at_ms):
            return {"event": "run_ended", "run": run, "status": status, "at_ms": at_ms}


def event_from_json(value: Any) -> Event:
    """The event in a JSON value.

    Raises:
        CorruptError: unknown kind of event, or a field missing or of the wrong type.
    """
    fields = Fields(value, "tracking event")
    kind = fields.text("event")
    match kind:
        case "run_started":
            return _run_started(fields)
        case "params":
            return ParamsLogged(fields.text("run"), _texts(fields.mapping("values")))
        case "metrics":
            return MetricsLogged(fields.text("run"), tuple(_point(item) for item in fields.array("points")))
        case "tags":
            return TagsSet(fields.text("run"), _texts(fields.mapping("values")))
        case "dataset":
            return _dataset(fields)
        case "artifact":
            return ArtifactLogged(fields.text("run"), fields.text("path"), base64.b64decode(fields.text("base64")))
        case "run_ended":
            status = cast("RunStatus", fields.text("status"))
            return RunEnded(fields.text("run"), status, fields.integer("at_ms"))
        case _:
            raise CorruptError(f"tracking event {kind!r} is unknown; it may need a newer promptstore")


def _run_started(fields: Fields) -> RunStarted:
    header = RunHeader(
        key=fields.text("key"),
        experiment=fields.text("experiment"),
        name=fields.text("name"),
        parent=fields.optional_text("parent"),
        tags=_texts(fields.mapping("tags")),
    )
    return RunStarted(header, fields.integer("at_ms"))


def _dataset(fields: Fields) -> DatasetLogged:
    dataset = DatasetRecord(
        name=fields.text("name"),
        digest=fields.text("digest"),
        source=fields.text("source"),
        num_rows=fields.integer("num_rows"),
        fields=tuple(str(each) for each in fields.array("fields")),
    )
    return DatasetLogged(fields.text("run"), dataset, cast("DatasetContext", fields.text("context")))


def _point(item: Any) -> Point:
    try:
        name, value, step, at_ms = item
        return Point(str(name), float(value), int(step), int(at_ms))
    except (TypeError, ValueError) as error:
        raise CorruptError(f"tracking event: {item!r} is not a measurement") from error


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
