"""The same promises kept by a dict and by a real MLflow database."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from promptstore.testing.tracking_sink import MemorySink
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
from promptstore.tracking.mlflow_sink import MlflowSink, connect
from promptstore.tracking.port import DatasetRecord, RunHeader
from promptstore.tracking.sink import Sink, TrackingRefusedError, TrackingUnavailableError

JOB = RunStarted(RunHeader("job", "sst2", "job", tags={"task": "sst2"}), at_ms=1000)
PROMPT = RunStarted(RunHeader("job/0", "sst2", "seed 0", parent="job"), at_ms=1001)
ROWS = DatasetRecord("sst2 train", "ab" * 32, "file:///rows.jsonl", num_rows=7, fields=("text", "label"))


class Server(Protocol):
    """A tracking server as a test sees it."""

    def sink(self) -> Sink: ...

    def steps(self, run_id: str, metric: str) -> list[int]: ...


class MemoryServer:
    def __init__(self) -> None:
        self._sink = MemorySink()

    def sink(self) -> Sink:
        return self._sink

    def steps(self, run_id: str, metric: str) -> list[int]:
        (run,) = [run for run in self._sink.runs.values() if run.id == run_id]
        return [point.step for point in run.points if point.name == metric]


class MlflowServer:
    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"

    def sink(self) -> Sink:
        return MlflowSink(self.uri, artifact_root=default_artifact_root(self.uri))

    def steps(self, run_id: str, metric: str) -> list[int]:
        return [point.step for point in connect(self.uri).get_metric_history(run_id, metric)]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    return MlflowServer(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(params=["memory", "mlflow"])
def server(request: pytest.FixtureRequest) -> Server:
    return MemoryServer() if request.param == "memory" else request.getfixturevalue("mlflow_server")


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[RunStarted], RunStarted]:
    """Makes a run this test's own."""

    def renamed(started: RunStarted) -> RunStarted:
        header = started.header
        parent = header.parent and f"{request.node.nodeid}/{header.parent}"
        return replace(started, header=replace(header, key=f"{request.node.nodeid}/{header.key}", parent=parent))

    return renamed


Unique = Callable[[RunStarted], RunStarted]


def test_a_run_started_twice_is_one_run_even_for_another_process(server: Server, unique: Unique) -> None:
    job = unique(JOB)
    first, second = server.sink(), server.sink()
    first.send(job)
    first.send(job)
    second.send(job)
    assert first.run_id(job.run) is not None
    assert first.run_id(job.run) == second.run_id(job.run)


def test_a_measurement_sent_twice_counts_once(server: Server, unique: Unique) -> None:
    job = unique(JOB)
    sink = server.sink()
    sink.send(job)
    points = MetricsLogged(job.run, (Point("loss", 0.5, 1, 2000), Point("loss", 0.4, 2, 2001)))
    sink.send(points)
    sink.send(points)
    assert server.steps(str(sink.run_id(job.run)), "loss") == [1, 2]


def test_the_end_of_a_run_alone_may_be_told_by_another_process(server: Server, unique: Unique) -> None:
    """What is spooled while the server is away may hold no word of the beginning."""
    job = unique(JOB)
    first, second = server.sink(), server.sink()
    first.send(job)
    first.send(MetricsLogged(job.run, (Point("loss", 0.5, 1, 2000),)))
    second.send(MetricsLogged(job.run, (Point("loss", 0.5, 1, 2000), Point("loss", 0.4, 2, 2001))))
    assert server.steps(str(first.run_id(job.run)), "loss") == [1, 2]


def test_an_unknown_run_is_refused_for_ever(server: Server) -> None:
    with pytest.raises(TrackingRefusedError, match="never started"):
        server.sink().send(TagsSet("nobody", {"a": "b"}))


@pytest.fixture
def told(mlflow_server: MlflowServer, unique: Unique) -> tuple[Any, Any, Any]:
    """A client, the job's run and the prompt's run, after everything was said twice."""
    job, prompt = unique(JOB), unique(PROMPT)
    sink = mlflow_server.sink()
    for _ in range(2):
        sink.send(job)
        sink.send(prompt)
        sink.send(ParamsLogged(prompt.run, {f"p{n}": "x" * 7000 for n in range(250)}))
        sink.send(MetricsLogged(prompt.run, (Point("loss", math.nan, 1, 2000),)))
        sink.send(TagsSet(prompt.run, {"digest": "d" * 64}))
        sink.send(DatasetLogged(prompt.run, ROWS, "train"))
        sink.send(DatasetLogged(prompt.run, replace(ROWS, digest="cd" * 32), "validation"))
        sink.send(ArtifactLogged(prompt.run, "prompts/best.safetensors", b"bytes"))
        sink.send(RunEnded(prompt.run, "FINISHED", 3000))
    client = connect(mlflow_server.uri)
    return client, client.get_run(sink.run_id(job.run)), client.get_run(sink.run_id(prompt.run))


def test_mlflow_holds_what_was_said(told: tuple[Any, Any, Any]) -> None:
    client, job, prompt = told
    assert prompt.info.status == "FINISHED"
    assert prompt.data.tags["mlflow.parentRunId"] == job.info.run_id
    assert prompt.data.tags["digest"] == "d" * 64
    assert len(prompt.data.params) == 250
    assert math.isnan(prompt.data.metrics["loss"])
    assert job.data.tags["task"] == "sst2"
    path = client.download_artifacts(prompt.info.run_id, "prompts/best.safetensors")
    assert Path(path).read_bytes() == b"bytes"


def test_mlflow_holds_both_data_sets_with_their_whole_digest(told: tuple[Any, Any, Any]) -> None:
    _, _, prompt = told
    found = {each.tags[0].value: json.loads(each.dataset.profile) for each in prompt.inputs.dataset_inputs}
    assert found == {
        "train": {"num_rows": 7, "sha256": "ab" * 32},
        "validation": {"num_rows": 7, "sha256": "cd" * 32},
    }


def test_artifacts_lie_beside_the_database_not_in_the_working_folder(told: tuple[Any, Any, Any]) -> None:
    client, job, _ = told
    assert client.get_experiment(job.info.experiment_id).artifact_location.endswith("/artifacts/sst2")


def test_a_resumed_fit_that_repeats_its_last_steps_adds_none_twice(mlflow_server: MlflowServer, unique: Unique) -> None:
    job = unique(JOB)
    first = mlflow_server.sink()
    first.send(job)
    first.send(MetricsLogged(job.run, tuple(Point("loss", 0.5, step, 2000 + step) for step in range(1, 6))))
    first.send(RunEnded(job.run, "FAILED", 3000))
    second = mlflow_server.sink()
    second.send(job)
    second.send(MetricsLogged(job.run, tuple(Point("loss", 0.5, step, 9000 + step) for step in range(4, 9))))
    run_id = str(second.run_id(job.run))
    assert mlflow_server.steps(run_id, "loss") == list(range(1, 9))
    assert connect(mlflow_server.uri).get_run(run_id).info.status == "RUNNING"


def test_a_deleted_experiment_is_restored_for_a_new_run(mlflow_server: MlflowServer, unique: Unique) -> None:
    job = unique(replace(JOB, header=replace(JOB.header, experiment="deleted by somebody")))
    mlflow_server.sink().send(job)
    client = connect(mlflow_server.uri)
    client.delete_experiment(client.get_experiment_by_name("deleted by somebody").experiment_id)
    again = replace(job, header=replace(job.header, key=f"{job.run} again"))
    mlflow_server.sink().send(again)
    assert client.get_experiment_by_name("deleted by somebody").lifecycle_stage == "active"


def test_what_mlflow_forbids_is_refused_not_retried(mlflow_server: MlflowServer, unique: Unique) -> None:
    job = unique(JOB)
    sink = mlflow_server.sink()
    sink.send(job)
    sink.send(ParamsLogged(job.run, {"steps": "80"}))
    with pytest.raises(TrackingRefusedError, match="steps"):
        sink.send(ParamsLogged(job.run, {"steps": "81"}))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_server_or_database_that_is_not_there_is_unavailable(uri: str) -> None:
    with pytest.raises(TrackingUnavailableError, match=r"127\.0\.0\.1:9|nowhere"):
        MlflowSink(uri).send(JOB)
