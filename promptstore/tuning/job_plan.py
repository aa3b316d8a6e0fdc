"""What a job will do for each task, settled before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.data import data_digest_of, load_task_rows
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.initialiser import parse_initialiser
from promptstore.tuning.job_folder import JobFolder
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.nearest_stored import nearest_stored
from promptstore.tuning.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class WarmStart:
    """First values that the caller chose, for the model of the job. parent: digest of the version they come from."""

    prompt: SoftPrompt
    parent: str


@dataclass(frozen=True, slots=True, eq=False)
class TaskPlan:
    """One task of a job. selection: rows that pick the best step; held_out: rows that judge it.

    data_digest: of the training and validation rows as they were read. parent: digest of the version it starts from.
    searched: how many candidates the settings are the best of; 0 if there was no search.
    """

    task: TaskSpec
    config: TuneConfig
    train: Rows
    selection: Rows
    held_out: Rows
    data_digest: str
    warm_start: SoftPrompt | None = None
    parent: str | None = None
    searched: int = 0

    @property
    def name(self) -> str:
        return self.task.name

    def started_by(self, start: WarmStart) -> "TaskPlan":
        """The same, with `start` and its length in place of the initialiser."""
        config = replace(self.config, num_virtual_tokens=start.prompt.num_virtual_tokens)
        return replace(self, config=config, warm_start=start.prompt, parent=start.parent)

    def fit_job(self, member: int = 0) -> FitJob:
        """The fit of one member, or of the only prompt: members differ in their seed and in what they start from."""
        config, start = self.config, self.warm_start
        if start is not None:
            start = start.members[member % len(start.members)]
        if config.ensemble == 1:
            return FitJob(self.name, self.task, config, self.train, self.selection, start)
        config = replace(config, ensemble=1, seed=config.seed + member)
        return FitJob(f"{self.name}/{member}", self.task, config, self.train, self.selection, start)

    def fit_jobs(self) -> list[FitJob]:
        return [self.fit_job(member) for member in range(self.config.ensemble)]

    def params(self) -> dict[str, object]:
        """What a person compares runs by."""
        rows = {"train": len(self.train), "selection": len(self.selection), "held_out": len(self.held_out)}
        searched = {"searched": self.searched} if self.searched else {}
        facts = {"rows": rows, "data_digest": self.data_digest, "task": self.task.to_json()}
        return {**self.config.to_json(), **searched, **facts}


def plan_tasks(tasks: Sequence[TaskSpec], overrides: Mapping[str, Any], *, settings: Settings) -> list[TaskPlan]:
    """Settings and rows of every task; `overrides` win over a task's own settings.

    Raises:
        InvalidInputError: two tasks of one name, an unknown setting, broken rows. NotFoundError: no such data.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(f"a job tunes each task once; asked for: {', '.join(names) or 'none'}")
    return [plan_task(task, overrides, settings=settings) for task in tasks]


def plan_task(task: TaskSpec, overrides: Mapping[str, Any], *, settings: Settings) -> TaskPlan:
    train, validation = load_task_rows(task, settings=settings)
    selection, held_out = split_validation(validation)
    config = TuneConfig.from_mapping({**task.tuning, **overrides})
    if config.ensemble > 1 and task.kind != "classification":
        raise InvalidInputError(f"task {task.name} generates text and an ensemble classifies; leave `ensemble` out")
    return TaskPlan(task, config, train, selection, held_out, data_digest_of(train, validation))


def with_warm_start(
    plan: TaskPlan, overrides: Mapping[str, Any], folder: JobFolder, store: PromptStore, model: FrozenModel
) -> TaskPlan:
    """`plan` with the version it starts from, if its initialiser asks for one; the same one when the job is repeated.

    The prompt takes that version's length unless the settings ask for another.

    Raises:
        NotFoundError: no such version, or nothing stored that could be nearest. IncompatibleModelError: it belongs to
            another model.
    """
    initialiser = parse_initialiser(plan.config.initialise)
    if initialiser.kind not in ("version", "nearest"):
        return plan
    store.refresh()
    wants_length = "num_virtual_tokens" in {**plan.task.tuning, **overrides}
    if (known := folder.note(plan.name, "parent")) is not None:
        ref = PromptRef(known["task"], digest=known["digest"])
    elif initialiser.kind == "version":
        ref = PromptRef.parse(initialiser.argument)
    else:
        length = plan.config.num_virtual_tokens if wants_length else None
        ref = nearest_stored(store, model, plan.task, plan.train, num_virtual_tokens=length)
    pulled = store.pull(ref, for_model=model.fingerprint)
    folder.write_note(plan.name, "parent", {"task": ref.task, "digest": pulled.version.digest})
    config = plan.config
    if not wants_length:
        config = replace(config, num_virtual_tokens=pulled.prompt.num_virtual_tokens)
    return replace(plan, config=config, warm_start=pulled.prompt, parent=pulled.version.digest)


def request_of(job: str, plans: Sequence[TaskPlan], model: FrozenModel, *, searches: bool) -> dict[str, Any]:
    """What decides a job's results; a job that is repeated must ask for the same."""
    return {
        "job": job,
        "search": searches,
        "model": list(model.fingerprint.identity),
        "tasks": {plan.name: plan.task.to_json() for plan in plans},
        "settings": {plan.name: plan.config.to_json() for plan in plans},
        "data": {plan.name: plan.data_digest for plan in plans},
    }
