"""One fit by several processes: the same prompts as by one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import echo_job, sentiment_job, start_of
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_checkpoint import FileSlot
from promptstore.tuning.fit_job import FitJob

OPTIONS = FitOptions(report_every=3, save_every_s=0)


def jobs() -> list[FitJob]:
    """The second has fewer rows a step than there are processes."""
    return [
        sentiment_job("a", learning_rate=0.003, batch_size=5, num_virtual_tokens=6),
        echo_job("b", learning_rate=0.003, batch_size=1),
    ]


def fitted(folder: Path) -> None:
    """Called in every process: leaves what it heard in its own file."""
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    events = list(fit(tiny_llama(), jobs(), options=OPTIONS, checkpoint=FileSlot(folder / "checkpoint")))
    results = {each.job: each.result for each in events if isinstance(each, FitFinished)}
    arrays = {name: result.last.embeddings for name, result in results.items()}
    values = {f"{name}/value": np.array([result.value, result.best_step]) for name, result in results.items()}
    save_file({**arrays, **values}, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_three_processes_fit_the_prompts_that_one_fits(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", __file__]
    done = subprocess.run([*launch, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    first, *others = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(3))
    for other in others:
        assert all(np.array_equal(other[name], first[name]) for name in first)
    model, tasks = tiny_llama(), {job.name: job for job in jobs()}
    for event in fit(model, jobs(), options=OPTIONS):
        if isinstance(event, FitFinished):
            ours, theirs, job = first[event.job], event.result.last.embeddings, tasks[event.job]
            moved = np.linalg.norm(theirs - start_of(model, job))
            assert np.linalg.norm(ours - theirs) < 2e-3 * moved
            assert first[f"{event.job}/value"].tolist() == [event.result.value, event.result.best_step]
    assert (tmp_path / "checkpoint").exists()


if __name__ == "__main__":
    fitted(Path(sys.argv[1]))
