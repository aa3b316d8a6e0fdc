"""GPUs held by one run at a time, among real processes."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from promptstore.errors import DeviceBusyError, InvalidInputError
from promptstore.lm.devices import gpu_holders, held_device

HOLD = """
import json, os, sys
from pathlib import Path
from promptstore.lm.devices import held_device
folder, device, gpus, wait_s = sys.argv[1:]
with held_device(device, gpus.split(","), folder=Path(folder), what=f"job {os.getpid()}", wait_s=float(wait_s)):
    print(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], "torch" in sys.modules]), flush=True)
    sys.stdin.read()
"""


class Run:
    """A process that holds a GPU until its input is closed."""

    def __init__(self, folder: Path, device: str = "auto", gpus: str = "a,b", wait_s: float = 60) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), device, gpus, str(wait_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def visible(self) -> str:
        """What CUDA may see, once this run holds something."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        seen, has_torch = json.loads(line)
        assert not has_torch, "CUDA could have been started before the device was chosen"
        return str(seen)

    def end(self, how: int | None = None) -> str:
        if how is not None:
            self.process.send_signal(how)
        return self.process.communicate(timeout=60)[1]


@contextmanager
def held(device: str, gpus: tuple[str, ...], folder: Path, **options: Any) -> Iterator[dict[str, str]]:
    environment: dict[str, str] = {}
    with held_device(device, gpus, folder=folder, what="test", wait_s=0, environment=environment, **options):
        yield environment


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    found: list[Run] = []
    yield found
    for run in found:
        if run.process.poll() is None:
            run.end(signal.SIGKILL)


def test_two_runs_get_a_gpu_each_and_the_third_waits_for_one_that_is_killed(tmp_path: Path, runs: list[Run]) -> None:
    runs += [Run(tmp_path), Run(tmp_path)]
    seen = [run.visible() for run in runs]
    assert sorted(seen) == ["a", "b"]
    third = Run(tmp_path)
    runs.append(third)
    assert third.process.stderr is not None
    said = third.process.stderr.readline()
    for run, name in zip(runs, seen, strict=False):
        assert f"{name} is held by job {run.pid} (process {run.pid}, since " in said
    assert said.startswith(f"job {third.pid} waits for a GPU: ")
    runs[0].process.send_signal(signal.SIGKILL)
    assert third.visible() == seen[0], "within the minute that it is ready to wait"
    holders = gpu_holders(tmp_path, ("a", "b"))
    assert {name: holder and holder.pid for name, holder in holders.items()} == {
        seen[0]: third.pid,
        seen[1]: runs[1].pid,
    }
    assert runs[1].end() == ""
    assert gpu_holders(tmp_path, (seen[1],)) == {seen[1]: None}


def test_a_run_that_waited_too_long_names_who_holds_what(tmp_path: Path, runs: list[Run]) -> None:
    runs.append(Run(tmp_path, gpus="a"))
    runs[0].visible()
    with (
        pytest.raises(DeviceBusyError, match=rf"test waited 0 s for a GPU: a is held by job {runs[0].pid} \(process"),
        held("cuda", ("a",), tmp_path),
    ):
        pass


def test_work_on_the_cpu_waits_for_no_gpu(tmp_path: Path, runs: list[Run]) -> None:
    runs.append(Run(tmp_path, gpus="a"))
    runs[0].visible()
    with held("cpu", ("a",), tmp_path) as environment:
        assert environment == {}
    with held("auto", (), tmp_path) as environment:
        assert environment == {}


def test_a_numbered_device_is_that_one_and_balanced_is_all(tmp_path: Path) -> None:
    with held("cuda:1", ("a", "b"), tmp_path) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "a,b", "so that cuda:1 still means the second"
        assert [name for name, holder in gpu_holders(tmp_path, ("a", "b")).items() if holder] == ["b"]
        with (
            pytest.raises(DeviceBusyError, match=r"b is held by test \(process \d+"),
            held("balanced", ("a", "b"), tmp_path),
        ):
            pass
        assert gpu_holders(tmp_path, ("a",)) == {"a": None}, "what was taken on the way is given back"
    with held("balanced", ("b", "a"), tmp_path) as environment:
        assert sorted(environment["CUDA_VISIBLE_DEVICES"].split(",")) == ["a", "b"]
    with pytest.raises(InvalidInputError, match=r"device cuda:2: runs on this machine have 2 GPU\(s\)"):
        held("cuda:2", ("a", "b"), tmp_path).__enter__()


def test_waiting_is_said_once_for_as_long_as_nothing_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = iter(range(100))
    with (
        caplog.at_level(logging.WARNING),
        held("cuda", ("a",), tmp_path),
        pytest.raises(DeviceBusyError),
        held_device(
            "cuda",
            ("a",),
            folder=tmp_path,
            what="second",
            wait_s=5,
            environment={},
            clock=lambda: float(next(now)),
            sleep=lambda _: None,
        ),
    ):
        pass
    assert [record.message.partition(" is held")[0] for record in caplog.records] == ["second waits for a GPU: a"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
