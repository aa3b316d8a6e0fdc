"""A tracking server in a dict, which fails when told to. Keeps the same contract as MLflow."""

from dataclasses import dataclass, field

from promptstore.tracking.events import (
    ArtifactLogged,
    DatasetLogged,
    Event,
    MetricsLogged,
    ParamsLogged,
    Point,
    RunEnded,
    RunStarted,
    TagsSet,
)
from promptstore.tracking.port import DatasetRecord
from promptstore.tracking.sink import TrackingRefusedError, TrackingUnavailableError


@dataclass
class RecordedRun:
    """All that was said about one run."""

    id: str
    experiment: str
    name: str
    parent: str | None
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    datasets: dict[tuple[str, str], DatasetRecord] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)


class MemorySink:
    """runs: by key, what arrived. failures_left: how many of the next sends fail; -1 means all of them."""

    def __init__(self) -> None:
        self.runs: dict[str, RecordedRun] = {}
        self.failures_left = 0
        self.sends = 0

    def run_id(self, key: str) -> str | None:
        return self.runs[key].id if key in self.runs else None

    def send(self, event: Event) -> None:
        self.sends += 1
        if self.failures_left:
            self.failures_left -= 1
            raise TrackingUnavailableError("memory: switched off")
        if isinstance(event, RunStarted):
            self._begin(event)
            return
        if event.run not in self.runs:
            raise TrackingRefusedError(f"run {event.run} was never started")
        self._record(self.runs[event.run], event)

    def _begin(self, event: RunStarted) -> None:
        header = event.header
        parent = self.run_id(header.parent) if header.parent else None
        run = RecordedRun(f"run-{len(self.runs)}", header.experiment, header.name, parent, tags=dict(header.tags))
        kept = self.runs.setdefault(header.key, run)
        if kept.status in {"FAILED", "KILLED"}:
            kept.status = "RUNNING"

    def _record(self, run: RecordedRun, event: Event) -> None:
        match event:
            case ParamsLogged(_, values):
                run.params.update(values)
            case TagsSet(_, values):
                run.tags.update(values)
            case MetricsLogged(_, points):
                run.points.extend(point for point in points if point not in run.points)
            case DatasetLogged(_, dataset, context):
                run.datasets[dataset.name, context] = dataset
            case ArtifactLogged(_, path, data):
                run.artifacts[path] = data
            case RunEnded(_, status, _):
                run.status = status
