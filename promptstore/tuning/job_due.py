"""Which tasks should be tuned again, and why."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import Attestation, PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.lm.source import open_model, source_weights_digest
from promptstore.settings import Settings
from promptstore.store.following import read_commit
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import KIND as ROLLOUT
from promptstore.tuning.data import data_digest_of, load_task_rows
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.job_gate import current_number
from promptstore.tuning.job_result import tuned_by
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.judge import ModelJudge
from promptstore.tuning.rows import Rows
from promptstore.tuning.settings_device import settings_device

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel

# What of a task may change without its prompts growing stale: where the data lie is not what they are.
HARMLESS = ("name", "data")
JOB_PREFIX = "retrain-"
# Within this time of its publication a version is on its way to its gate, in all likelihood.
LEFT_AFTER = timedelta(minutes=2)
OpenModel = Callable[[], "FrozenModel"]


@dataclass(frozen=True, slots=True)
class DueRules:
    """When a task is due. max_age: of its newest version. max_decay: of what `alias` points at, on today's rows."""

    on_new_data: bool = True
    on_changed_task: bool = True
    on_new_model: bool = True
    max_age: timedelta | None = None
    max_decay: float | None = None
    alias: str = DEFAULT_ALIAS


@dataclass(frozen=True, slots=True)
class Due:
    """Whether a task is due: it is, if there are reasons; if not, `fresh` says why not.

    state: digest of all that a tuning would rest on now, the newest version included; names the job that answers it.
    left: the newest version, if a retraining made it and was stopped before anybody decided about it.
    """

    task: str
    state: str
    reasons: tuple[str, ...] = ()
    fresh: str = ""
    left: str | None = None

    def __str__(self) -> str:
        return f"{self.task}: {'; '.join(self.reasons)}" if self.reasons else f"{self.task}: not due, {self.fresh}"


@dataclass(frozen=True, slots=True, eq=False)
class TaskToday:
    """A task as it stands, its data, and its newest version."""

    task: TaskSpec
    train: Rows
    validation: Rows
    newest: PromptVersion | None

    @property
    def data_digest(self) -> str:
        return data_digest_of(self.train, self.validation)

    @property
    def told(self) -> dict[str, Any]:
        return _told(self.task)


def due_tasks(
    tasks: Sequence[TaskSpec], store: PromptStore, settings: Settings, rules: DueRules, *, now: datetime
) -> list[Due]:
    """Looks at every task; reads its data, and loads the model only where a decay has to be measured.

    Raises:
        NotFoundError, InvalidInputError: of data or model that cannot be read.
    """
    store.refresh()
    weights = source_weights_digest(settings.model, cache_dir=settings.cache_dir)
    opened: list[FrozenModel] = []

    def model() -> "FrozenModel":
        if not opened:
            held.enter_context(settings_device(settings, "measuring decay"))
            held.callback(opened.clear)  # before the device is given back
            opened.append(
                open_model(settings.model, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)
            )
        return opened[0]

    found = []
    with ExitStack() as held:
        for task in tasks:
            today = TaskToday(task, *load_task_rows(task, settings=settings), _newest(store, task.name))
            due = is_due(today, store, weights, rules, now=now)
            if not due.reasons and rules.max_decay is not None:
                due = with_decay(due, today, store, model, weights, rules)
            if not due.reasons and today.newest is not None and is_left(today.newest, store, rules.alias, now=now):
                said = f"{today.newest} was made by a retraining and never decided about; it goes to its gate now"
                due = replace(due, left=str(today.newest), fresh=said)
            found.append(due)
    return found


def is_due(today: TaskToday, store: PromptStore, weights: str, rules: DueRules, *, now: datetime) -> Due:
    """Age, data, task and base model. weights: digest of the base model's."""
    task, newest = today.task, today.newest
    number = 0 if newest is None else newest.number
    state = sha256_hex(canonical_json([task.name, number, today.data_digest, today.told, weights]))
    if newest is None:
        return Due(task.name, state, ("never tuned",))
    manifest = store.manifest(newest.digest)
    before = _told(manifest.task)
    changed = " and ".join(sorted(name for name, value in today.told.items() if value != before.get(name)))
    age = now - datetime.fromisoformat(newest.at).astimezone(UTC)
    reasons = []
    if rules.on_new_data and manifest.provenance.data_digest != today.data_digest:
        reasons.append(f"the data changed since {newest}")
    if rules.on_changed_task and changed:
        reasons.append(f"{changed} changed since {newest}")
    if rules.on_new_model and manifest.fingerprint.weights_digest != weights:
        reasons.append(f"{newest} belongs to another base model, {manifest.fingerprint.name}")
    if rules.max_age is not None and age > rules.max_age:
        reasons.append(f"{newest} is {_spoken(age)} old")
    return Due(task.name, state, tuple(reasons), f"{newest} rests on the same data, task and model")


def with_decay(due: Due, today: TaskToday, store: PromptStore, model: OpenModel, weights: str, rules: DueRules) -> Due:
    """`due` with one more reason, if the version in use does worse on today's rows than on those of its publication.

    What was tuned on today's data already is left alone: tuning it again would find the same. The figure is attested,
    so the same rows are never judged twice.
    """
    number = current_number(store, today.task.name, rules.alias)
    if rules.max_decay is None or number is None or today.newest is None:
        return due
    ref = PromptRef(today.task.name, number=number)
    manifest = store.manifest(store.resolve(ref).digest)
    newest = store.manifest(today.newest.digest)
    is_tuned = newest.provenance.data_digest == today.data_digest
    if is_tuned or manifest.fingerprint.weights_digest != weights or manifest.task.metric not in manifest.metrics:
        return due
    metric = manifest.task.metric
    before, value = manifest.metrics[metric], _value_today(ref, today, metric, store, model)
    if before - value <= rules.max_decay:
        return replace(due, fresh=f"{due.fresh}; {metric} of {ref} is {value:.3f}, was {before:.3f}")
    return replace(due, reasons=(*due.reasons, f"{metric} of {ref} fell from {before:.3f} to {value:.3f}"))


def is_left(version: PromptVersion, store: PromptStore, alias: str, *, now: datetime) -> bool:
    """Whether a retraining made `version`, and nobody decided since whether `alias` may point at it."""
    if any(move.alias == alias and move.after == version.number for move in store.state.task(version.task).moves):
        return False
    if any(_is_decision(said, alias) for said in version.attestations):
        return False
    if now - datetime.fromisoformat(version.at).astimezone(UTC) < LEFT_AFTER:
        return False
    return read_commit(store.ledger.objects, version.commit).reason.startswith(tuned_by(JOB_PREFIX))


def _is_decision(said: Attestation, alias: str) -> bool:
    """A gate that refused, a person who declined, a trial by people. One that only passed its gate is on its way."""
    if said.body.get("alias", alias) != alias:
        return False
    is_no = said.body.get("verdict") == "fail" or said.body.get("approved") is False
    return is_no or said.kind == ROLLOUT


def job_name(found: Sequence[Due], overrides: Mapping[str, Any]) -> str:
    """The same for the same work to be done, so that a crashed retraining is gone on with by the next."""
    state = {"due": sorted(each.state for each in found), "overrides": dict(overrides)}
    return f"{JOB_PREFIX}{sha256_hex(canonical_json(state))[:16]}"


def _value_today(ref: PromptRef, today: TaskToday, metric: str, store: PromptStore, model: OpenModel) -> float:
    _, held_out = split_validation(today.validation)
    for said in reversed(store.resolve(ref).attestations):
        if said.kind == "evaluation" and said.body.get("data_digest") == held_out.digest:
            return float(said.body["metrics"][metric])
    pulled = store.pull(ref, for_model=model().fingerprint)
    (found,) = ModelJudge(model()).evaluate([EvaluationCase(pulled.manifest.task, pulled.prompt, held_out)])
    store.attest(ref, "evaluation", found.to_json(), reason="does it still do as well as when it was published?")
    return found.value


def _newest(store: PromptStore, task: str) -> PromptVersion | None:
    versions = store.state.task(task).versions if task in store.state.tasks else ()
    return next((each for each in reversed(versions) if not each.is_expired), None)


def _told(task: TaskSpec) -> dict[str, Any]:
    return {name: value for name, value in task.to_json().items() if name not in HARMLESS}


def _spoken(age: timedelta) -> str:
    return f"{age.days} days" if age.days else f"{age.total_seconds() / 3600:.1f} hours"
