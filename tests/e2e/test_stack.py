"""The local stack as its user runs it: up, work on it through env.sh, up again, a crash, down."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from infra.stack.place import StackPlace, StackSettings
from infra.stack.processes import ProcessId, ProcessRecord, running, start, stop
from promptstore.testing.job_place import JobPlace, write_tiny_model
from promptstore.testing.servers import MissingServerError, postgres_programs

ROOT = Path(__file__).parents[2]
SERVICES = ("postgres", "s3", "mlflow", "prefect", "server", "worker")
PATHS = {"mlflow": "/health", "prefect": "/api/health", "server": "/readyz"}


@dataclass(frozen=True)
class Stack:
    place: StackPlace
    model: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "infra.stack", *arguments, "--folder", str(self.place.folder)]
        environment = {**os.environ, "PROMPTSTORE_MODEL": str(self.model), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
        )

    def shell(self, script: str) -> str:
        """What a shell that sourced env.sh, and has nothing else of this process, prints."""
        lines = f"set -euo pipefail\nsource {shlex.quote(str(self.place.environment_file))}\n{script}"
        clean = {"PATH": os.defpath, "HOME": str(self.place.folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-c", lines], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def settings(self) -> StackSettings:
        settings = StackSettings.read(self.place)
        assert settings is not None
        return settings

    @property
    def processes(self) -> dict[str, list[ProcessId]]:
        """Everything that runs of each service, children included."""
        return {name: running(self.place.mark(name)) for name in SERVICES}

    def leader(self, service: str) -> ProcessId:
        record = ProcessRecord.read(self.place.pid_file(service))
        assert record is not None
        return record.process


@pytest.fixture
def stack() -> Iterator[Stack]:
    """PostgreSQL's own user must get there: pytest's folders are closed to others."""
    try:
        postgres_programs()
    except MissingServerError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    folder.chmod(0o711)
    stack = Stack(StackPlace(folder / "stack"), write_tiny_model(folder / "model"))
    try:
        yield stack
    finally:
        stack.run("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stack_comes_up_once_keeps_what_is_published_and_goes_down_without_a_trace(stack: Stack) -> None:
    first = stack.run("up", "--free-ports")
    assert first.returncode == 0, first.stderr
    for name, path in PATHS.items():
        assert stack.settings.url(name) in first.stdout
        assert httpx.get(stack.settings.url(name) + path).status_code == 200
    publish(stack)
    assert json.loads(stack.shell("promptstore list --json"))["task"] == "sentiment"
    assert answered_version(stack) == "1"
    artifact_root, kept = stack.shell(LOG_AND_READ_ARTIFACT).splitlines()[-2:]
    assert artifact_root.startswith("mlflow-artifacts:/")
    assert kept.endswith("note.txt: kept in S3")
    assert stack.shell("prefect config view --hide-sources | grep PREFECT_API_URL").count(stack.settings.url("prefect"))

    before = {name: stack.leader(name) for name in SERVICES}
    again = stack.run("up", "--free-ports")
    assert again.returncode == 0, again.stderr
    assert "starting" not in again.stderr
    assert {name: stack.leader(name) for name in SERVICES} == before

    everything = [process for found in stack.processes.values() for process in found]
    assert len(everything) >= len(SERVICES)
    assert stack.run("down").returncode == 0
    assert [each for each in everything if each.is_alive] == []
    assert stack.processes == {name: [] for name in SERVICES}
    assert stack.run("down").stderr.splitlines() == [f"{name}: was down" for name in reversed(SERVICES)]

    assert stack.run("up").returncode == 0
    assert json.loads(stack.shell("promptstore list --json"))["task"] == "sentiment"


def publish(stack: Stack) -> None:
    folder = stack.place.folder.parent
    np.save(folder / "prompt.npy", np.zeros((4, 32), dtype=np.float32))
    task = JobPlace(folder / "job").task_file("sentiment")
    stack.shell(f"promptstore import {folder / 'prompt.npy'} --task {task}")
    stack.shell("promptstore promote sentiment:1 --force --reason 'a test of the stack'")


def answered_version(stack: Stack) -> str:
    """Through the replica, once it has followed the log."""
    for _ in range(100):
        answer = stack.shell("promptstore ask sentiment 'a good film' --json || true")
        if answer:
            return str(json.loads(answer)["version"]).rpartition(":")[2]
        time.sleep(0.5)
    raise AssertionError("the replica never served what was promoted")


LOG_AND_READ_ARTIFACT = """python - <<'END'
import os
import boto3
import mlflow
with mlflow.start_run() as run:
    mlflow.log_text("kept in S3", "note.txt")
print(run.info.artifact_uri)
client = boto3.client("s3", endpoint_url=os.environ["PROMPTSTORE_S3_ENDPOINT"])
(found,) = client.list_objects_v2(Bucket="mlflow")["Contents"]
print(found["Key"] + ": " + client.get_object(Bucket="mlflow", Key=found["Key"])["Body"].read().decode())
END"""


def test_a_taken_port_is_named_and_nothing_is_started(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = StackSettings.make(stack.place, has_free_ports=True)
        ports = {**made.ports, "mlflow": port}
        text = json.dumps(
            {"ports": ports, **{name: getattr(made, name) for name in ("password", "access_key", "secret_key")}}
        )
        stack.place.settings_file.write_text(text)
        done = stack.run("up")
    assert done.returncode == 1
    assert f"port {port} (mlflow); nothing was started" in done.stderr
    assert stack.processes == {name: [] for name in SERVICES}


@pytest.mark.slow
def test_what_was_started_is_stopped_again_when_a_later_server_fails(stack: Stack) -> None:
    stack.model.rename(stack.model.with_name("gone"))
    done = stack.run("up", "--free-ports")
    assert done.returncode == 1
    assert "server ended before it answered" in done.stderr
    assert "postgres: stopped again" in done.stderr
    assert stack.processes == {name: [] for name in SERVICES}


def test_a_process_that_took_the_number_of_a_stopped_one_is_a_stranger() -> None:
    process = ProcessId.of(os.getpid())
    assert process is not None
    assert process.is_alive
    assert not ProcessId(process.pid, process.boot, process.started - 1).is_alive
    assert not ProcessId(process.pid, "an earlier boot", process.started).is_alive


def test_children_are_found_after_their_parent_was_killed(tmp_path: Path) -> None:
    mark = str(tmp_path)
    script = "sleep 300 & setsid sleep 300 & wait"
    parent = start(["bash", "-c", script], environment={"PATH": os.defpath}, mark=mark, log=tmp_path / "log")
    deadline = time.monotonic() + 30
    while len(running(mark)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running(mark)) == 3
    os.kill(parent.pid, 9)
    os.waitpid(parent.pid, 0)
    import signal

    stop(parent, mark, by=signal.SIGTERM, patience_s=5)
    assert running(mark) == []
