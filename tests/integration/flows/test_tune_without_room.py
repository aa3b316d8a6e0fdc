"""A disk that takes nothing more, under `promptstore tune`."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from promptstore.objects.local import LocalObjectStore
from promptstore.store.verify import verify
from promptstore.testing.job_place import QUICK, JobPlace

pytestmark = pytest.mark.slow


def tune(place: JobPlace, model: Path, task: Path, *, largest_file: int | None) -> "subprocess.CompletedProcess[str]":
    """largest_file: bytes, after which a file takes no more, as on a full disk."""
    settings = [f"--set={name}={value}" for name, value in QUICK.items()]
    environment = {**place.environment(model), "PROMPTSTORE_MLFLOW_URI": ""}

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-m", "promptstore", "tune", str(task), "--job", "job", *settings],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=limit,
    )


def test_it_is_said_with_what_to_do_and_the_same_job_ends_well_once_there_is_room(
    place: JobPlace, model_folder: Path
) -> None:
    task = place.task_file("sst2")
    for largest_file in (256, 3000):  # the job's request; its checkpoint
        failed = tune(place, model_folder, task, largest_file=largest_file)
        assert failed.returncode == 1
        assert "Traceback" not in failed.stderr
        last = failed.stderr.strip().splitlines()[-1]
        assert "free some space" in last or "no room" in last, last
        if (place.folder / "store" / "store.json").exists():
            assert verify(LocalObjectStore(place.folder / "store")).is_clean
    done = tune(place, model_folder, task, largest_file=None)
    assert done.returncode == 0, done.stderr
    assert [str(version) for version in place.store().state.task("sst2").versions] == ["sst2:1"]
