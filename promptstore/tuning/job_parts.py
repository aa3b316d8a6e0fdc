"""A job in parts that are tuned apart, on other machines perhaps, and one result again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptstore.core.digest import sha256_hex
from promptstore.core.name import is_name
from promptstore.core.task import TaskSpec
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.job import tune_tasks
from promptstore.tuning.job_open import opened_tools
from promptstore.tuning.job_result import JobResult, TunedTask


@dataclass(frozen=True, slots=True)
class JobPart:
    """Tasks that are tuned together, under a job name of their own. git_commit: of whoever asked for the whole job.

    searches: as in `tune_tasks`.
    """

    job: str
    tasks: tuple[TaskSpec, ...]
    overrides: Mapping[str, Any]
    git_commit: str | None
    searches: bool = False


def split_job(
    job: str,
    tasks: Sequence[TaskSpec],
    *,
    size: int,
    overrides: Mapping[str, Any],
    git_commit: str | None,
    searches: bool = False,
) -> list[JobPart]:
    """Parts of at most `size` tasks, in order. Splitting the same job again gives parts of the same names."""
    groups = [tuple(tasks[start : start + size]) for start in range(0, len(tasks), size)]
    return [JobPart(_part_name(job, group[0].name), group, overrides, git_commit, searches) for group in groups]


def run_part(part: JobPart, *, settings: Settings, store: PromptStore) -> JobResult:
    """Tune one part, in this process. Raises as `tune_tasks`."""
    with opened_tools(settings, store, part.job) as opened:
        tools = replace(opened, git_commit=part.git_commit)
        return tune_tasks(part.tasks, job=part.job, tools=tools, overrides=part.overrides, searches=part.searches)


def joined_result(job: str, parts: Sequence[JobPart], outcomes: Sequence[JobResult | BaseException]) -> JobResult:
    """The result of the whole job. A part that failed gives its cause for each of its tasks.

    Raises:
        BaseException: no part succeeded; the first one's error.
    """
    results = [each for each in outcomes if isinstance(each, JobResult)]
    if not results:
        raise next(each for each in outcomes if isinstance(each, BaseException))
    tasks: list[TunedTask] = []
    for part, outcome in zip(parts, outcomes, strict=True):
        if isinstance(outcome, JobResult):
            tasks.extend(outcome.tasks)
        else:
            cause = f"{type(outcome).__name__}: {outcome}"
            tasks.extend(TunedTask(task.name, failure=cause) for task in part.tasks)
    said = dict.fromkeys(each.tracking for each in results)
    return JobResult(job, results[0].model, tuple(tasks), "; ".join(said))


def lack_of_room(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why no node, as it is, could ever run a part; `None` if one could. wanted, nodes: amounts of `CPU` and `GPU`."""
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        return None
    there = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in wanted) for node in nodes)
    asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
    return f"a fit wants {asked}, which no node of the cluster has ({there or 'there is none'})"


def _part_name(job: str, task: str) -> str:
    """`job.task` where that may be a name, else as much of the job's as fits and a digest of both."""
    name = f"{job}.{task}"
    return name if is_name(name) else f"{job[:50]}.{sha256_hex(name.encode())[:12]}"
