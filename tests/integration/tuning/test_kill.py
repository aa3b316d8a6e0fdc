"""kill -9 at any step, start again, same loss curve (issue 4, resume)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import echo_job, sentiment_job
from promptstore.tuning.events import FitFinished, StepReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_checkpoint import FileSlot

jobs = [sentiment_job("a", steps=30, evaluate_every=10), echo_job("b", steps=20, evaluate_every=8)]
options = FitOptions(report_every=1, save_every_s=0)
for event in fit(tiny_llama(), jobs, options=options, checkpoint=FileSlot(Path(sys.argv[1]))):
    if isinstance(event, StepReport):
        print(json.dumps([event.job, event.step, event.loss]), flush=True)
    elif isinstance(event, FitFinished):
        print(json.dumps([event.job, "done", event.result.prompt.embeddings.tobytes().hex()]), flush=True)
"""
Line = tuple[str, int | str]


def run(checkpoint: Path, *, kill_after: int | None) -> dict[Line, float | str]:
    """What one process said until it ended, or until it was killed in the midst of what followed so many lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(checkpoint)], stdout=subprocess.PIPE, text=True, env=environment
    )
    said: dict[Line, float | str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if not line.endswith("\n"):
            break
        job, step, value = json.loads(line)
        said[job, step] = value
        if len(said) == kill_after:
            process.send_signal(signal.SIGKILL)
            kill_after = None
    code = process.wait()
    assert code in (0, -signal.SIGKILL)
    return said


@pytest.mark.slow
def test_a_killed_fit_goes_on_with_the_same_loss_curve(tmp_path: Path) -> None:
    expected = run(tmp_path / "never-killed", kill_after=None)
    assert len(expected) == 30 + 20 + 2
    found: dict[Line, float | str] = {}
    lives = []
    for kill_after in (1, 17, 13, None):
        life = run(tmp_path / "killed", kill_after=kill_after)
        for key in life.keys() & found.keys():
            assert life[key] == found[key]
        lives.append(len(life))
        found |= life
    print(f"lines said by each process: {lives}")
    assert found == expected
    assert lives[-1] < len(expected), "the last process began at the beginning, so nothing was resumed"
