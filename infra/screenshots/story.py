"""What the pictures show: the demo's two tasks tuned twice, one version in use, a better one to be approved."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.screenshots.prefect_api import PrefectApi
from infra.stack.services import WORK_POOL
from promptstore.errors import PromptStoreError
from promptstore.settings import load_settings
from promptstore.tuning.demo_data import write_demo_data

TASK = "sentiment"
# Repeated under the same name, a job finds what it did: taking the pictures again tunes nothing again.
FIRST: Mapping[str, Any] = {
    "steps": 30,
    "evaluate_every": 5,
    "initialise": "vocabulary",
    "loss": "labels",
    "learning_rate": 0.1,
    "num_virtual_tokens": 8,
}
SECOND: Mapping[str, Any] = {
    "steps": 15,
    "loss": "labels",
    "evaluate_every": 5,
    "learning_rate": 0.03,
    "warmup_steps": 0,
    "num_virtual_tokens": 8,
    "initialise": f"version:{TASK}:1",
    "seed": 1,
}
TUNE_S, STEP_S = 3600.0, 1200.0


@dataclass(frozen=True, slots=True)
class Story:
    """tuned: the first tuning's flow run. waiting: the promotion that a person has to approve."""

    tuned: str
    waiting: str


def tell(prefect: PrefectApi, environment: Mapping[str, str], folder: Path) -> Story:
    """Bring it about on a running stack, up to where a person is asked. folder: for the task files.

    Raises:
        PromptStoreError: a flow did not end as it should.
    """
    files = write_demo_data(load_settings().cache_dir, folder, quick=True)
    _run_module(("flows", "deploy", "--tasks", str(folder), "--pool", WORK_POOL), environment)
    tuned = _tune(prefect, files, "first", FIRST)
    _tune(prefect, [file for file in files if file.stem == TASK], "second", SECOND)
    for file in files:
        _run(prefect, "promote/on-demand", _promotion(f"{file.stem}:1", file, reason="the first version"))
    _run(prefect, "mirror/mirror", {})
    file = next(each for each in files if each.stem == TASK)
    asked = {**_promotion(f"{TASK}:2", file, reason="goes on from the first version"), "approval": "person"}
    waiting = prefect.start("promote/on-demand", asked)
    prefect.wait(waiting, "PAUSED", timeout_s=STEP_S)
    return Story(tuned, waiting)


def finish(prefect: PrefectApi, story: Story) -> None:
    """After the approval: the promotion ends, and MLflow's registry shows it."""
    prefect.wait(story.waiting, "COMPLETED", timeout_s=STEP_S)
    _run(prefect, "mirror/mirror", {})


def _tune(prefect: PrefectApi, files: list[Path], job: str, overrides: Mapping[str, Any]) -> str:
    asked = {"tasks": [str(file) for file in files], "job": f"pictures-{job}", "overrides": dict(overrides)}
    return _run(prefect, "tune/on-demand", asked, timeout_s=TUNE_S)


def _promotion(ref: str, file: Path, *, reason: str) -> dict[str, Any]:
    return {"ref": ref, "task_file": str(file), "reason": reason}


def _run(prefect: PrefectApi, deployment: str, parameters: dict[str, Any], *, timeout_s: float = STEP_S) -> str:
    run = prefect.start(deployment, parameters)
    prefect.wait(run, "COMPLETED", timeout_s=timeout_s)
    return run


def _run_module(arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], check=False, capture_output=True, text=True, env=dict(environment)
    )
    if done.returncode != 0:
        raise PromptStoreError(f"{' '.join(arguments)} failed: {done.stderr.strip()}")
