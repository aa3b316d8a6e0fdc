"""The local stack as its user runs it: up, work on it through env.sh, up again, a crash, down."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from infra.stack.place import StackSettings
from infra.stack.processes import ProcessId, running, start, stop, wait_until_reaped
from infra.stack.rig import SERVICES, StackRig
from promptstore.testing.job_place import JobPlace

PATHS = {"mlflow": "/health", "prefect": "/api/health", "server": "/readyz"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stack_comes_up_once_keeps_what_is_published_and_goes_down_without_a_trace(stack: StackRig) -> None:
    first = stack.run("up", "--free-ports")
    assert first.returncode == 0, first.stderr
    for name, path in PATHS.items():
        assert stack.settings.url(name) in first.stdout
        assert httpx.get(stack.settings.url(name) + path).status_code == 200
    publish(stack)
    assert json.loads(stack.shell("promptstore list --json"))["task"] == "sentiment"
    assert stack.answered_version("sentiment") == 1
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


def publish(stack: StackRig) -> None:
    folder = stack.place.folder.parent
    np.save(folder / "prompt.npy", np.zeros((4, 32), dtype=np.float32))
    task = JobPlace(folder / "job").task_file("sentiment")
    stack.shell(f"promptstore import {folder / 'prompt.npy'} --task {task}")
    stack.shell("promptstore promote sentiment:1 --force --reason 'a test of the stack'")


LOG_AND_READ_ARTIFACT = """python - <<'END'
import os
import signal
import boto3
import mlflow
with mlflow.start_run() as run:
    mlflow.log_text("kept in S3", "note.txt")
print(run.info.artifact_uri)
client = boto3.client("s3", endpoint_url=os.environ["PROMPTSTORE_S3_ENDPOINT"])
(found,) = client.list_objects_v2(Bucket="mlflow")["Contents"]
print(found["Key"] + ": " + client.get_object(Bucket="mlflow", Key=found["Key"])["Body"].read().decode())
END"""


def test_a_taken_port_is_named_and_nothing_is_started(stack: StackRig) -> None:
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
def test_what_was_started_is_stopped_again_when_a_later_server_fails(stack: StackRig) -> None:
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
    stop(parent, mark, by=signal.SIGTERM, patience_s=5)
    assert running(mark) == []


def test_an_ended_process_is_waited_for_until_its_number_is_free(tmp_path: Path) -> None:
    """Its parent, a sleep, never asks for its end; whoever inherits it does."""
    script = "sleep 300 & echo $! > child; exec sleep 2"
    parent = start(["bash", "-c", script], environment={"PATH": os.defpath}, mark=str(tmp_path), log=tmp_path / "log")
    child = tmp_path / "child"
    deadline = time.monotonic() + 30
    while not (child.exists() and child.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(child.read_text())
    for each in (pid, parent.pid):
        os.kill(each, 9)
        while ProcessId.of(each) is not None:
            time.sleep(0.01)
        wait_until_reaped(each, 30)
        assert not Path(f"/proc/{each}").exists()
