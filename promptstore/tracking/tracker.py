"""Runs told through a delivery thread."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from promptstore.errors import InvalidInputError
from promptstore.tracking.delivery import Delivery, Patience, send_spool
from promptstore.tracking.events import (
    ArtifactLogged,
    DatasetLogged,
    MetricsLogged,
    ParamsLogged,
    Point,
    RunEnded,
    RunStarted,
    TagsSet,
)
from promptstore.tracking.mlflow_address import default_artifact_root
from promptstore.tracking.mlflow_sink import MlflowSink
from promptstore.tracking.null import NullTracker
from promptstore.tracking.port import DatasetContext, DatasetRecord, RunHeader, RunStatus, Tracker, TrackingReport
from promptstore.tracking.spool import SUFFIX, Spool, spools

FORBIDDEN_IN_NAMES = re.compile(r"[^\w./: -]")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class DeliveredRunLog:
    """A run whose every word goes through a delivery thread."""

    def __init__(self, key: str, delivery: Delivery, now_ms: Callable[[], int]) -> None:
        self._key = key
        self._delivery = delivery
        self._now_ms = now_ms

    def log_params(self, values: Mapping[str, object]) -> None:
        self._delivery.put(ParamsLogged(self._key, flattened(values)))

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        at_ms = self._now_ms()
        points = tuple(Point(_name(name), float(value), step, at_ms) for name, value in values.items())
        self._delivery.put(MetricsLogged(self._key, points))

    def set_tags(self, values: Mapping[str, str]) -> None:
        self._delivery.put(TagsSet(self._key, {_name(name): str(value) for name, value in values.items()}))

    def log_dataset(self, dataset: DatasetRecord, context: DatasetContext) -> None:
        self._delivery.put(DatasetLogged(self._key, dataset, context))

    def log_artifact(self, path: str, data: bytes) -> None:
        self._delivery.put(ArtifactLogged(self._key, path, data))

    def end(self, status: RunStatus = "FINISHED") -> None:
        self._delivery.put(RunEnded(self._key, status, self._now_ms()))

    def run_id(self, timeout_s: float) -> str | None:
        return self._delivery.run_id(self._key, timeout_s)


class DeliveredTracker:
    """A tracker over one delivery thread."""

    def __init__(self, delivery: Delivery, *, now_ms: Callable[[], int] = _now_ms) -> None:
        self._delivery = delivery
        self._now_ms = now_ms

    def start(self, header: RunHeader) -> DeliveredRunLog:
        if "'" in header.key:
            raise InvalidInputError(f"run key {header.key!r} must not hold a quotation mark")
        self._delivery.put(RunStarted(header, self._now_ms()))
        return DeliveredRunLog(header.key, self._delivery, self._now_ms)

    def close(self) -> TrackingReport:
        return self._delivery.close()


def open_tracker(
    uri: str, *, spool_folder: Path, job: str, artifact_root: str | None = None, patience: Patience | None = None
) -> Tracker:
    """A tracker for the MLflow at `uri`; one that nobody listens to if `uri` is empty. Connects in the background.

    uri: an MLflow server, or a database of its own such as `sqlite:////folder/mlflow.db`.
    job: names the spool, so that a repeated job sends first what an earlier try could not.
    artifact_root: URL of the folder for artifacts; for SQLite a folder beside the database by default.

    Raises:
        InvalidInputError: a database on a server without an artifact root, or a job name that is no file name.
    """
    if not uri:
        return NullTracker()
    if not re.fullmatch(r"[\w.-]+", job):
        raise InvalidInputError(f"job {job!r} must be made of letters, digits, '.', '_' and '-'")
    sink = MlflowSink(uri, artifact_root=artifact_root or default_artifact_root(uri))
    return DeliveredTracker(Delivery(sink, Spool(spool_folder / f"{job}{SUFFIX}"), patience=patience))


def replay_spool(uri: str, *, spool_folder: Path, artifact_root: str | None = None) -> list[TrackingReport]:
    """Send everything in `spool_folder` to the MLflow at `uri`; one report for each spool, none if nothing is kept."""
    if not spools(spool_folder):
        return []
    sink = MlflowSink(uri, artifact_root=artifact_root or default_artifact_root(uri))
    return [send_spool(spool, sink) for spool in spools(spool_folder)]


def flattened(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` names and text.

    >>> flattened({"fit": {"steps": 80, "init": None}, "task": "sst2"})
    {'fit.steps': '80', 'fit.init': 'None', 'task': 'sst2'}
    """
    result: dict[str, str] = {}
    for name, value in values.items():
        path = _name(f"{prefix}{name}")
        if isinstance(value, Mapping):
            result.update(flattened(value, f"{path}."))
        else:
            result[path] = str(value)
    return result


def _name(text: str) -> str:
    """`text` with what MLflow forbids in a name replaced."""
    cleaned = FORBIDDEN_IN_NAMES.sub("_", text)
    return "/".join(part for part in cleaned.split("/") if part not in {"", ".", ".."})
