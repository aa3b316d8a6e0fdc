"""MLflow as a sink: the only importer of mlflow. Explicit clients, none of the library's global state."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from promptstore.tracking.events import (
    ArtifactLogged,
    DatasetLogged,
    Event,
    MetricsLogged,
    ParamsLogged,
    RunEnded,
    RunStarted,
    TagsSet,
)
from promptstore.tracking.mlflow_address import without_password
from promptstore.tracking.sink import TrackingRefusedError, TrackingUnavailableError

RUN_KEY = "run_key"
MOST_PARAMS = 100
MOST_DIGEST_CHARACTERS = 36  # width of MLflow's column; the whole digest goes into the profile
NEVER = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
_T = TypeVar("_T")


class MlflowSink:
    """A tracking server or database that MLflow knows. One thread at a time.

    artifact_root: URL of the folder for artifacts where the client, not a server, decides it (a database URI).
    """

    def __init__(self, uri: str, *, artifact_root: str | None = None) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._connection: Any = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._resumed_steps: dict[tuple[str, str], set[int]] = {}
        self._resumed: set[str] = set()

    def run_id(self, key: str) -> str | None:
        return self._runs.get(key)

    def send(self, event: Event) -> None:
        with translated(self._uri):
            match event:
                case RunStarted():
                    self._begin(event)
                case MetricsLogged():
                    self._log_metrics(event)
                case ParamsLogged(run, values):
                    self._log_params(self._id(run), values)
                case TagsSet(run, values):
                    self._set_tags(self._id(run), values)
                case DatasetLogged():
                    self._log_dataset(event)
                case ArtifactLogged(run, path, data):
                    self._log_artifact(self._id(run), PurePosixPath(path), data)
                case RunEnded(run, status, at_ms):
                    self._client.set_terminated(self._id(run), status=status, end_time=at_ms)

    @property
    def _client(self) -> Any:
        if self._connection is None:
            self._connection = connect(self._uri)
        return self._connection

    def _id(self, key: str) -> str:
        """Of a run that this sink has begun, or another one before: what was spooled may be the end of a run alone."""
        if key not in self._runs:
            everywhere = [each.experiment_id for each in self._client.search_experiments()]
            if (found := self._find(everywhere, key)) is None:
                raise TrackingRefusedError(f"run {key} was never started")
            self._resumed.add(key)
            self._runs[key] = found.info.run_id
        return self._runs[key]

    def _begin(self, started: RunStarted) -> None:
        header = started.header
        if header.key in self._runs:
            return
        experiment = self._experiment(header.experiment)
        if found := self._find([experiment], header.key):
            self._resumed.add(header.key)
            self._runs[header.key] = found.info.run_id
            if found.info.status in {"FAILED", "KILLED"}:
                self._client.update_run(found.info.run_id, status="RUNNING")
            return
        tags = {**header.tags, RUN_KEY: header.key, "mlflow.source.type": "JOB", "mlflow.source.name": "promptstore"}
        if header.parent and (parent := self._parent_id(experiment, header.parent)):
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(experiment, start_time=started.at_ms, tags=tags, run_name=header.name)
        self._runs[header.key] = run.info.run_id

    def _parent_id(self, experiment: str, key: str) -> str | None:
        if key not in self._runs and (found := self._find([experiment], key)):
            self._runs[key] = found.info.run_id
        return self._runs.get(key)

    def _find(self, experiments: list[str], key: str) -> Any:
        runs = self._client.search_runs(experiments, filter_string=f"tags.{RUN_KEY} = '{key}'", max_results=1)
        return runs[0] if runs else None

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                self._experiments[name] = self._create_experiment(name)
            else:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = f"{self._artifact_root.rstrip('/')}/{name}" if self._artifact_root else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _log_metrics(self, event: MetricsLogged) -> None:
        from mlflow.entities import Metric

        run_id = self._id(event.run)
        points = [point for point in event.points if not self._is_known(event.run, point.name, point.step)]
        if points:
            metrics = [Metric(point.name, point.value, point.at_ms, point.step) for point in points]
            self._client.log_batch(run_id, metrics=metrics, synchronous=True)

    def _is_known(self, run: str, name: str, step: int) -> bool:
        """Whether a run that goes on has this measurement from before: a resumed fit repeats its last steps."""
        if run not in self._resumed:
            return False
        if (run, name) not in self._resumed_steps:
            history = self._client.get_metric_history(self._id(run), name)
            self._resumed_steps[run, name] = {metric.step for metric in history}
        return step in self._resumed_steps[run, name]

    def _log_params(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for chunk in _chunks([Param(name, value) for name, value in values.items()], MOST_PARAMS):
            self._client.log_batch(run_id, params=chunk, synchronous=True)

    def _set_tags(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(name, value) for name, value in values.items()], MOST_PARAMS):
            self._client.log_batch(run_id, tags=chunk, synchronous=True)

    def _log_dataset(self, event: DatasetLogged) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = event.dataset
        columns = [{"type": "string", "name": name, "required": True} for name in data.fields]
        dataset = Dataset(
            name=data.name,
            digest=data.digest[:MOST_DIGEST_CHARACTERS],
            source_type="promptstore",
            source=json.dumps({"uri": data.source}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({"num_rows": data.num_rows, "sha256": data.digest}),
        )
        context = InputTag("mlflow.data.context", event.context)
        self._client.log_inputs(self._id(event.run), datasets=[DatasetInput(dataset, tags=[context])])

    def _log_artifact(self, run_id: str, path: PurePosixPath, data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="promptstore-") as folder:
            file = Path(folder) / path.name
            file.write_bytes(data)
            self._client.log_artifact(run_id, str(file), str(path.parent) if path.parent.name else None)


def connect(uri: str) -> Any:
    """An `MlflowClient` with short time-outs, no telemetry, and only warnings in the log.

    MLflow reads these from the environment alone; what the user set there wins.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    from mlflow.tracking.client import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def translated(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        said = _short(error)
        if error.error_code in NEVER:
            raise TrackingRefusedError(said) from error
        raise TrackingUnavailableError(f"{without_password(uri)}: {said}") from error
    except (OSError, SQLAlchemyError) as error:
        said = _short(error)
        raise TrackingUnavailableError(f"{without_password(uri)}: {said}") from error


def _short(error: Exception) -> str:
    """The first line of a message that may hold a whole stack of causes."""
    return str(error).strip().partition("\n")[0][:300]


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
