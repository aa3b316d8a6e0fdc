"""The flow that keeps prompts fresh: what is due and why, tune it, promote what is no worse."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State

from flows.parameters import PromoteParameters, RetrainParameters
from flows.promotions import Promotions, promote_each, require_people_can_be_asked
from flows.report import report_due
from flows.retrying import is_passing
from flows.tune import tune
from flows.upgrade_base import upgrade_base
from promptstore.errors import ConflictError
from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.tuning.job_due import Due
    from promptstore.tuning.job_result import JobResult

NONE = Promotions()


@dataclass(frozen=True, slots=True)
class RetrainResult:
    """due: every task that was looked at. promotions: of what was tuned now, and of what was left by earlier runs.

    skipped: why nothing was done although something is due: an earlier run is still at it. upgraded: what was released
    on a new base model.
    """

    due: "tuple[Due, ...]"
    skipped: str | None = None
    tuned: "JobResult | None" = None
    promotions: Promotions = NONE
    upgraded: tuple[str, ...] = ()

    @property
    def failures(self) -> Sequence[str]:
        return () if self.tuned is None else self.tuned.failures


@flow(name="retrain")
def retrain(parameters: RetrainParameters) -> RetrainResult:
    """Tune what is due, promote what is no worse. A run that crashed is gone on with by the next: equal work has an
    equal name, and a version that was made and never decided about goes to its gate.
    """
    if parameters.promote and parameters.approval == "person":
        require_people_can_be_asked()
    tell_mlflow()
    upgraded = upgrade_base(parameters.upgrade(parameters.old_model)).released if parameters.old_model else ()
    looked = look(parameters)
    found = [due for _, due in looked]
    report_due(found)
    wanted = {due.task: name for name, due in looked if due.reasons}
    asked = [_asked(parameters, due.left, name, due.fresh) for name, due in looked if due.left is not None]
    tuned = None
    if wanted:
        overrides = {**parameters.overrides, "search": True} if parameters.search else parameters.overrides
        from promptstore.tuning.job_due import job_name

        job = job_name([each for each in found if each.reasons], overrides)
        state: State[JobResult] = tune(parameters.tuning(list(wanted.values()), job), return_state=True)
        if state.is_failed() and isinstance(error := state.result(raise_on_failure=False), ConflictError):
            get_run_logger().warning("skipped: %s", error)
            return RetrainResult(tuple(found), skipped=str(error), upgraded=upgraded)
        tuned = state.result()
        asked += promotions(parameters, found, tuned, wanted)
    promoted = promote_each(asked) if parameters.promote else NONE
    return RetrainResult(tuple(found), None, tuned, promoted, upgraded)


@task(persist_result=False)
def tell_mlflow() -> None:
    """What earlier runs could not, because it was away."""
    from promptstore.tuning.job_spool import resend

    for report in resend(load_settings()):
        get_run_logger().warning("kept by an earlier run: %s", report)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def look(parameters: RetrainParameters) -> "list[tuple[str, Due]]":
    """Every task by file or name, due or not, with the reasons."""
    from promptstore.tuning.job_due import due_tasks
    from promptstore.tuning.job_names import find_task, task_names

    settings = load_settings(model=parameters.model)
    store = open_prompt_store(settings)
    names = task_names(parameters.tasks)
    tasks = [find_task(name, store) for name in names]
    found = due_tasks(tasks, store, settings, parameters.rules(), now=datetime.now(UTC))
    return list(zip(names, found, strict=True))


def promotions(
    parameters: RetrainParameters, found: "Sequence[Due]", tuned: "JobResult", files: dict[str, str]
) -> list[PromoteParameters]:
    """What the gate is asked about: every version that was made."""
    why = {each.task: "; ".join(each.reasons) for each in found}
    return [
        _asked(parameters, each.version, files[each.task], f"retrained: {why[each.task]}")
        for each in tuned.tasks
        if each.version is not None
    ]


def _asked(parameters: RetrainParameters, version: str, name: str, reason: str) -> PromoteParameters:
    """name: of the task, or its file."""
    return parameters.promotion(version, name if name.endswith(".toml") else None, reason)
