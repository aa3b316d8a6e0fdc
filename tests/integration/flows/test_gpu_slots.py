"""Jobs and gates that ask for a GPU, where somebody else holds it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.errors import DeviceBusyError
from promptstore.lm.devices import gpu_lock
from promptstore.store.file_lock import FileLock
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.tuning.job_open import run_tune_job
from promptstore.tuning.job_open_gate import run_gate_job


@pytest.fixture
def gpu(place: JobPlace, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileLock]:
    """A machine that believes in a GPU, `a`, and waits for none."""
    for name, value in {**place.environment(model_folder), "CUDA_VISIBLE_DEVICES": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PROMPTSTORE_GPU_WAIT_S", "0")
    lock = gpu_lock(place.settings.state_dir / "devices", "a")
    yield lock
    lock.give_back()


def test_a_job_waits_for_the_gpu_and_one_on_the_cpu_does_not(
    place: JobPlace, gpu: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(place.task_file("sst2"))
    assert gpu.take("nightly")
    with pytest.raises(DeviceBusyError, match=r"job late waited 0 s for a GPU: a is held by nightly \(process"):
        run_tune_job([file], job="late", settings=place.settings, store=place.store(), overrides=QUICK)
    monkeypatch.setenv("PROMPTSTORE_DEVICE", "cpu")
    done = run_tune_job([file], job="late", settings=place.settings, store=place.store(), overrides=QUICK)
    assert done.tasks[0].version == "sst2:1"
    monkeypatch.setenv("PROMPTSTORE_DEVICE", "auto")
    with pytest.raises(DeviceBusyError, match="gate of sst2:1 waited"):
        run_gate_job("sst2:1", settings=place.settings, store=place.store(), task_file=file)
    shown = CliRunner().invoke(app, ["devices"])
    assert "nightly" in shown.stdout, shown.output
    gpu.give_back()
    folder = str(place.folder)
    assert run_gate_job("sst2:1", settings=place.settings, store=place.store(), task_file=folder).verdict
    assert gpu.holder() is None, "the gate gave it back"
