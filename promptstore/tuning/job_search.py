"""Settings that a job searches for before it tunes: candidates share their passes, and the worse ones leave."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from promptstore.errors import InvalidInputError, PromptStoreError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.job_folder import JobFolder
from promptstore.tuning.job_plan import TaskPlan
from promptstore.tuning.job_progress import JobProgress
from promptstore.tuning.search import DEFAULT_GRID, RungReached, candidates, search, winner

NOTE = "search"


def with_search(
    plan: TaskPlan, given: Mapping[str, Any], *, model: FrozenModel, folder: JobFolder, progress: JobProgress
) -> TaskPlan:
    """`plan` with the settings that did best at the last rung; the same ones when the job is repeated.

    given: settings that the task or the caller named; they stay as they are. The search ends where one candidate is
    left, and the job's own fit, which can be resumed, begins anew with its settings.

    Raises:
        InvalidInputError: every setting that could be searched is given. PromptStoreError: every candidate diverged.
    """
    known = folder.note(plan.name, NOTE)
    if known is None:
        jobs = candidates(plan.fit_job(), _grid(plan, given))
        chosen = next(job for job in jobs if job.name == _best(model, jobs, plan, progress))
        differing = {name: value for name, value in chosen.config.to_json().items() if name in DEFAULT_GRID}
        known = {"candidates": len(jobs), "chosen": differing}
        folder.write_note(plan.name, NOTE, known)
    config = TuneConfig.from_mapping({**plan.config.to_json(), **known["chosen"]})
    return replace(plan, config=config, searched=known["candidates"])


def _grid(plan: TaskPlan, given: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    free = {name: values for name, values in DEFAULT_GRID.items() if name not in given}
    if plan.warm_start is not None or plan.task.kind == "generation":  # nothing to choose: it has no labels
        free.pop("initialise", None)
    if not free:
        raise InvalidInputError(
            f"there is nothing to search for {plan.name}: {' and '.join(DEFAULT_GRID)} are given; leave one out"
        )
    return free


def _best(model: FrozenModel, jobs: Sequence[FitJob], plan: TaskPlan, progress: JobProgress) -> str:
    """The name of the candidate that leads where one is left, or where no rung is."""
    progress.say(plan.name, f"search: {len(jobs)} left")
    finished: list[FitFinished] = []
    for event in search(model, jobs):
        if isinstance(event, RungReached):
            progress.say(plan.name, f"search: {len(event.kept)} left")
            if len(event.kept) == 1:
                return event.kept[0]
        elif isinstance(event, FitFinished) and event.result.cause is None:
            finished.append(event)
    if not finished:
        raise PromptStoreError(f"every candidate for {plan.name} diverged; lower learning_rate or raise warmup_steps")
    return winner(finished).job
