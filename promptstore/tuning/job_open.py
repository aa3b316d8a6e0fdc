"""From names and settings to a job at work: what the command line and the flows both call."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.tracking import TrackingReport, open_tracker, replay_spool
from promptstore.tuning.evaluation_memory import open_evaluation_memory
from promptstore.tuning.job import JobTools, tune_tasks
from promptstore.tuning.job_progress import shown_progress
from promptstore.tuning.job_result import JobResult
from promptstore.tuning.settings_device import settings_device
from promptstore.tuning.task_file import read_task

SPOOLS = "tracking"


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


def resend(settings: Settings) -> list[TrackingReport]:
    """Tell MLflow what earlier jobs of this machine could not; what it still does not take stays kept."""
    if not settings.mlflow_uri:
        return []
    return replay_spool(settings.mlflow_uri, spool_folder=settings.state_dir / SPOOLS)


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


def task_names(given: Sequence[str]) -> list[str]:
    """`given`, which names task files, folders of them or tasks in the store, with each folder's files in its place.

    Raises:
        InvalidInputError: a folder without a task file.
    """
    names: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            names.append(name)
            continue
        files = sorted(str(file) for file in Path(name).glob("*.toml"))
        if not files:
            raise InvalidInputError(f"folder {name} holds no task file (*.toml)")
        names.extend(files)
    return names


def find_task(name: str, store: PromptStore) -> TaskSpec:
    """The task in a file, or as the newest version of a task in the store has it.

    Raises:
        NotFoundError: neither such a file nor such a task.
        InvalidInputError: the task is in the store, but its data lay on the machine that tuned it: give the file.
    """
    if name.endswith(".toml") or Path(name).is_file():
        return read_task(Path(name))
    versions = [each for each in store.refresh().task(name).versions if not each.is_expired]
    if not versions:
        raise NotFoundError(f"every version of {name} is expired; give the task's file")
    task = store.manifest(versions[-1].digest).task
    for source in (task.data.train, task.data.validation):
        if "://" not in source and not source.startswith("hf:"):
            raise InvalidInputError(f"task {name} was tuned on a local file, {source}; give the task's file")
    return task


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with `-dirty` if files differ from it; `None` outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None


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
