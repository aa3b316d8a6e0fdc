"""From a published version to production: judge it, move the alias, look again (ADR 0020)."""

from dataclasses import dataclass, replace
from typing import Literal

from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.errors import ConflictError, NotFoundError, PromptStoreError, RefusedError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore, PulledPrompt, Ref
from promptstore.tuning.evaluate import evaluate
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.gate import GatePolicy, GateVerdict, decide
from promptstore.tuning.rows import Rows

DEFAULT_POLICY = GatePolicy()


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """A verdict as it stands in the log. against: the number the alias points at, `None` if it does not exist."""

    task: str
    number: int
    digest: str
    alias: str
    against: int | None
    verdict: GateVerdict

    @property
    def ref(self) -> PromptRef:
        return PromptRef(self.task, number=self.number)

    @property
    def has_passed(self) -> bool:
        return self.verdict.verdict == "pass"

    def __str__(self) -> str:
        compared = "nothing" if self.against is None else f"{self.task}:{self.against}"
        figures = f"{self.verdict.metric} {self.verdict.candidate:.3f}"
        if self.verdict.production is not None:
            figures += f" against {self.verdict.production:.3f}"
        said = f"gate of {self.ref} for {self.alias}, compared with {compared}: {self.verdict.verdict} ({figures})"
        return "; ".join([said, *(check.explanation for check in self.verdict.failures)])


def gate_version(
    store: PromptStore,
    model: FrozenModel,
    ref: Ref,
    rows: Rows,
    *,
    alias: str = DEFAULT_ALIAS,
    policy: GatePolicy = DEFAULT_POLICY,
    actor: str | None = None,
) -> GateOutcome:
    """Judge a version against what `alias` points at now, on the same rows, and write the verdict into the log.

    rows: held-out rows with the fields of both tasks' templates. model: the one that serves both versions.

    Raises:
        IncompatibleModelError: the candidate, or what the alias points at, belongs to another model.
        InvalidInputError: a row lacks a field that one of the two reads.
    """
    store.refresh()
    candidate = store.pull(ref, for_model=model.fingerprint)
    against = current_number(store, candidate.version.task, alias)
    metric = candidate.manifest.task.metric
    ours = _evaluated(model, candidate, rows, metric)
    theirs: Evaluation | None = None
    if against == candidate.version.number:
        theirs = ours
    elif against is not None:
        production = store.pull(PromptRef(candidate.version.task, number=against), for_model=model.fingerprint)
        theirs = _evaluated(model, production, rows, metric)
    verdict = decide(ours, theirs, policy, prompt=candidate.prompt, base=model.fingerprint)
    version = candidate.version
    outcome = GateOutcome(version.task, version.number, version.digest, alias, against, verdict)
    body = {**verdict.to_json(), "alias": alias, "against": against}
    store.attest(outcome.ref, "gate", body, reason=f"gate: {verdict.verdict}", actor=actor)
    return outcome


def gate_fields(store: PromptStore, ref: Ref, alias: str = DEFAULT_ALIAS) -> tuple[set[str], TaskSpec]:
    """The columns that a gate of `ref` reads, for the candidate and what `alias` points at; the candidate's task."""
    version = store.resolve(ref)
    task = store.manifest(version.digest).task
    tasks = [task]
    if (against := current_number(store, version.task, alias)) is not None:
        current = store.resolve(PromptRef(version.task, number=against))
        tasks.append(store.manifest(current.digest).task)
    return {name for each in tasks for name in (*each.template_fields, each.target_field)}, task


def why_no_news(store: PromptStore, ref: Ref, alias: str = DEFAULT_ALIAS) -> str | None:
    """Why nothing is left to do for `ref`, which was announced earlier: in use already, or overtaken."""
    store.refresh()
    version = store.resolve(ref)
    if current_number(store, version.task, alias) == version.number:
        return f"{alias} is {version} already"
    newest = max(each.number for each in store.state.task(version.task).versions if not each.is_expired)
    return f"{version.task}:{newest} was published since {version}" if newest > version.number else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said to a promotion."""

    is_approved: bool
    approver: str
    reason: str

    def statement(self, alias: str) -> Statement:
        body = {"approved": self.is_approved, "approver": self.approver, "reason": self.reason, "alias": alias}
        return Statement("approval", body)


def promote_gated(
    store: PromptStore, outcome: GateOutcome, *, reason: str, answer: Answer | None = None, actor: str | None = None
) -> PromptVersion:
    """Move the alias to the judged version, if it still points at what the version was judged against.

    answer: of a person who was asked, kept in the same commit; a refusal is kept and moves nothing.

    Raises:
        ConflictError: the alias moved since the gate; judge again.
        RefusedError: the verdict was `fail`, or the answer was no.
    """
    statements = [] if answer is None else [answer.statement(outcome.alias)]
    if answer is not None and not answer.is_approved:
        store.attest(outcome.ref, "approval", statements[0].body, reason=answer.reason, actor=actor)
        raise RefusedError(f"{answer.approver} declined {outcome.ref} for {outcome.alias}: {answer.reason}")
    move = Promotion(outcome.ref, outcome.alias, outcome.against, statements=statements)
    return store.release([move], reason=reason, actor=actor)[0]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What was found after a promotion: "moved on" if somebody moved the alias again since, which is their affair."""

    state: Literal["confirmed", "moved on", "broken"]
    explanation: str


def confirm_promotion(store: PromptStore, outcome: GateOutcome) -> Confirmation:
    """Look again, as a reader would: does the alias name the version, and are its bytes whole?"""
    store.refresh()
    now = current_number(store, outcome.task, outcome.alias)
    if now != outcome.number:
        return Confirmation("moved on", f"{outcome.task}@{outcome.alias} points at version {now} since")
    try:
        store.pull(outcome.ref, for_model=None)
    except PromptStoreError as error:
        return Confirmation("broken", str(error))
    return Confirmation("confirmed", f"{outcome.task}@{outcome.alias} is version {outcome.number}")


def undo_promotion(
    store: PromptStore, outcome: GateOutcome, *, reason: str, actor: str | None = None
) -> PromptVersion | None:
    """Point the alias back at what the version was judged against, if it still points at the version.

    Returns `None` where there was nothing before: the alias is removed.

    Raises:
        ConflictError: somebody moved it since.
    """
    store.refresh()
    now = current_number(store, outcome.task, outcome.alias)
    if now != outcome.number:
        raise ConflictError(f"{outcome.task}@{outcome.alias} points at version {now} since; nothing to undo")
    if outcome.against is None:
        store.delete_alias(outcome.task, outcome.alias, expected=outcome.number, reason=reason, actor=actor)
        return None
    return store.rollback(outcome.task, outcome.alias, to=outcome.against, reason=reason, actor=actor)


def current_number(store: PromptStore, task: str, alias: str) -> int | None:
    """The version number that `alias` points at in the state last seen, `None` if it does not exist."""
    try:
        return store.resolve(PromptRef(task, alias=alias)).number
    except NotFoundError:
        return None


def _evaluated(model: FrozenModel, pulled: PulledPrompt, rows: Rows, metric: str) -> Evaluation:
    return evaluate(model, replace(pulled.manifest.task, metric=metric), pulled.prompt, rows)
