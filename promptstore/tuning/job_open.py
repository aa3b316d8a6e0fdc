"""From names and settings to a job at work: what the command line and the flows both call."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.tracking import open_tracker
from promptstore.tuning.evaluation_memory import open_evaluation_memory
from promptstore.tuning.job import JobTools, tune_tasks
from promptstore.tuning.job_names import find_task, git_commit, task_names
from promptstore.tuning.job_progress import shown_progress
from promptstore.tuning.job_result import JobResult
from promptstore.tuning.job_spool import SPOOLS
from promptstore.tuning.settings_device import settings_device


def run_tune_job(
    tasks: Sequence[str],
    *,
    job: str,
    settings: Settings,
    store: PromptStore,
    overrides: Mapping[str, Any] | None = None,
    actor: str | None = None,
    searches: bool = False,
) -> JobResult:
    """Tune the named tasks, together, on the model of the settings. Raises as `tune_tasks`.

    tasks: as `task_names` takes them. job: names the work; repeating it goes on. searches: as in `tune_tasks`.
    """
    specs = [find_task(name, store) for name in task_names(tasks)]
    with settings_device(settings, f"job {job}"):
        return _tune(specs, job, settings, store, overrides or {}, actor, searches=searches)


@contextmanager
def opened_tools(
    settings: Settings, store: PromptStore, job: str, *, actor: str | None = None, model: FrozenModel | None = None
) -> Iterator[JobTools]:
    """The model, the tracker and the folder of a job. model: if it is open already."""
    model = model or open_base(settings.model, settings)
    tracker = open_tracker(settings.mlflow_uri, spool_folder=settings.state_dir / SPOOLS, job=job)
    with shown_progress() as progress:
        yield JobTools(
            store=store,
            model=model,
            tracker=tracker,
            folder=settings.state_dir / "jobs",
            settings=settings,
            progress=progress,
            git_commit=git_commit(Path.cwd()),
            actor=actor,
            memory=open_evaluation_memory(settings),
        )


def open_base(source: str, settings: Settings) -> FrozenModel:
    """The base model at `source`, on the device and in the dtype of the settings. Raises as `open_model`."""
    return open_model(source, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)


def _tune(
    specs: Sequence[TaskSpec],
    job: str,
    settings: Settings,
    store: PromptStore,
    overrides: Mapping[str, Any],
    actor: str | None,
    *,
    searches: bool,
) -> JobResult:
    """A function of its own, so that nothing refers to the model any more when the device is given back."""
    with opened_tools(settings, store, job, actor=actor) as tools:
        return tune_tasks(specs, job=job, tools=tools, overrides=overrides, searches=searches)
