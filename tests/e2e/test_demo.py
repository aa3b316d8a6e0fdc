"""The demo as a stranger runs it: a process, its output, what it leaves behind, and what a Ctrl-C does to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from promptstore.objects.local import LocalObjectStore
from promptstore.settings import load_settings
from promptstore.store.verify import verify
from promptstore.testing.job_place import write_tiny_model
from promptstore.wiring import open_prompt_store

DEMO = [sys.executable, "-m", "promptstore", "demo", "--quick", "--folder", "demo"]


def finish(arguments: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    facts = folder / "facts.json"
    done = subprocess.run(
        [*arguments, "--json", str(facts)], cwd=folder, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(facts.read_bytes()), done.stdout


@pytest.mark.lm
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_tunes_promotes_serves_and_switches_real_prompts(tmp_path: Path) -> None:
    facts, printed = finish(DEMO, tmp_path)
    source, sentiment = facts["tasks"]["source"], facts["tasks"]["sentiment"]
    assert source["tuned_accuracy"] >= source["untuned_accuracy"] + 0.20
    assert sentiment["tuned_accuracy"] >= sentiment["untuned_accuracy"]
    assert facts["failed_requests"] == 0
    assert facts["switched_in_flight"]
    assert facts["rolled_back"]
    assert source["digest"][:12] in printed
    store = open_prompt_store(load_settings(store=str(tmp_path / "demo" / "store-quick"), state_dir=tmp_path / "state"))
    for name, told in (("source", source), ("sentiment", sentiment)):
        assert store.resolve(name).digest == told["digest"]
        assert store.manifest(told["digest"]).provenance.mlflow_run
    assert [(move.before, move.after) for move in store.history("sentiment")] == [(None, 1), (1, 2), (2, 1)]


@pytest.fixture(scope="module")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo on random weights: the same path in a fraction of the time."""
    return [*DEMO, "--model", str(write_tiny_model(tmp_path_factory.mktemp("model")))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_demo_that_is_stopped_says_one_thing_and_leaves_a_sound_store(tiny_demo: list[str], tmp_path: Path) -> None:
    stop_in(["1/5"], tiny_demo, tmp_path)


@pytest.mark.slow
@pytest.mark.kills
@pytest.mark.timeout(1800)
def test_a_demo_stopped_in_every_phase_runs_to_its_end_twice(tiny_demo: list[str], tmp_path: Path) -> None:
    stop_in(AT_WORK, tiny_demo, tmp_path)
    for _ in range(2):
        finish_well(tiny_demo, tmp_path)


# By phase: the signal, and a file that appears in the middle of it.
AT_WORK = {
    "1/5": (signal.SIGINT, "state/jobs/*/checkpoint"),
    "2/5": (signal.SIGINT, "logs/promote-*.parameters.json"),
    "3/5": (signal.SIGINT, ""),
    "4/5": (signal.SIGTERM, "logs/tune-second.parameters.json"),
    "5/5": (signal.SIGINT, ""),
}


def stop_in(phases: Iterable[str], arguments: list[str], folder: Path) -> None:
    for phase in phases:
        by, at_work = AT_WORK[phase]
        stop_at(phase, by, arguments, folder, at_work=at_work)
        require_sound(folder)


def finish_well(arguments: list[str], folder: Path) -> None:
    facts, _ = finish(arguments, folder)
    assert (facts["failed_requests"], facts["switched_in_flight"], facts["rolled_back"]) == (0, True, True)
    require_sound(folder)


def require_sound(folder: Path) -> None:
    for store in (folder / "demo").glob("store-quick-*"):
        assert verify(LocalObjectStore(store)).is_clean


def stop_at(phase: str, by: signal.Signals, arguments: list[str], folder: Path, *, at_work: str) -> None:
    """Signal the demo in the middle of `phase`: one message, exit code 130, no child left behind.

    at_work: a file in the demo's folder that appears in that phase, of this run.
    """
    begun = time.time()
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=accept_interrupts,  # noqa: PLW1509 - it starts no thread
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(phase):
            wait_for_file(folder / "demo", at_work, since=begun)
            process.send_signal(by)
    assert phase in said
    assert process.wait(timeout=60) == 130, said
    assert said.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in said
    assert children_with(str(folder)) == []


def wait_for_file(folder: Path, pattern: str, *, since: float, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while pattern and not any(path.stat().st_mtime >= since for path in folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} appeared"
        time.sleep(0.05)
    time.sleep(0.2)


def accept_interrupts() -> None:
    """A test run in a shell's background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children_with(text: str) -> list[str]:
    """Command lines of this machine's processes that work in the demo's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if text in line]


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    done = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "choose another with --folder" in done.stderr
    assert "Traceback" not in done.stderr
