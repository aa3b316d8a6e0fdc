"""From a published version to production: judge it, move the alias, look again (ADR 0020)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.errors import ConflictError, CorruptError, NotFoundError, RefusedError
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore, Ref
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.gate import GatePolicy, GateVerdict
from promptstore.tuning.gate_rules import decide
from promptstore.tuning.judge import Judge
from promptstore.tuning.rows import Rows
from promptstore.tuning.slices import slice_columns

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
    judge: Judge,
    ref: Ref,
    rows: Rows,
    *,
    alias: str = DEFAULT_ALIAS,
    policy: GatePolicy = DEFAULT_POLICY,
    actor: str | None = None,
) -> GateOutcome:
    """Judge a version against what `alias` points at now, on the same rows, and write the verdict into the log.

    rows: held-out rows with the fields of both tasks' templates and the policy's slices. judge: of the model that
    serves both versions.

    Raises:
        IncompatibleModelError: the candidate, or what the alias points at, belongs to another model.
        InvalidInputError: a row lacks a field that one of the two reads, or a slice's; a column that is no slice.
    """
    store.refresh()
    slices = slice_columns(rows, policy.slices)
    candidate = store.pull(ref, for_model=judge.fingerprint)
    version = candidate.version
    against = current_number(store, version.task, alias)
    judged = [candidate]
    if against not in (None, version.number):
        judged.append(store.pull(PromptRef(version.task, number=against), for_model=judge.fingerprint))
    metric = candidate.manifest.task.metric
    cases = [EvaluationCase(replace(each.manifest.task, metric=metric), each.prompt, rows) for each in judged]
    found = judge.evaluate(cases)
    if policy.bounds_latency:
        latencies = judge.measure_latency(cases)
        found = [replace(each, latency=latency) for each, latency in zip(found, latencies, strict=True)]
    verdict = decide(
        found[0],
        None if against is None else found[-1],
        policy,
        prompt=candidate.prompt,
        base=judge.fingerprint,
        slices=slices,
    )
    outcome = GateOutcome(version.task, version.number, version.digest, alias, against, verdict)
    body = {**verdict.to_json(), "alias": alias, "against": against}
    store.attest(outcome.ref, "gate", body, reason=f"gate: {verdict.verdict}", actor=actor)
    return outcome


def verdict_before(
    store: PromptStore, ref: Ref, alias: str, *, data_digest: str, policy: GatePolicy, weights: str
) -> GateOutcome | None:
    """The verdict that stands in the log already, if it is a pass and nothing that it rests on is another now.

    data_digest: of the held-out rows. weights: digest of the base model's.
    """
    version = store.resolve(ref)
    against = current_number(store, version.task, alias)
    said = last_verdict(version)
    if said is None or (said.get("alias"), said.get("against")) != (alias, against):
        return None
    try:
        verdict = GateVerdict.from_json(said)
    except CorruptError:  # of another release
        return None
    rests_on = (verdict.data_digest, verdict.policy, verdict.model)
    if verdict.verdict == "fail" or rests_on != (data_digest, policy, weights):
        return None
    return GateOutcome(version.task, version.number, version.digest, alias, against, verdict)


def last_verdict(version: PromptVersion) -> Mapping[str, Any] | None:
    """The body of the latest gate's attestation, `None` if there was no gate."""
    return next((each.body for each in reversed(version.attestations) if each.kind == "gate"), None)


def require_one_base(store: PromptStore, ref: Ref, alias: str) -> None:
    """A version can be compared with what `alias` points at only on the model of both.

    Raises:
        RefusedError: it is of another base model than what `alias` points at.
    """
    version = store.resolve(ref)
    if (against := current_number(store, version.task, alias)) is None:
        return
    current = store.resolve(PromptRef(version.task, number=against))
    ours, theirs = (store.manifest(each.digest).fingerprint for each in (version, current))
    if ours.identity != theirs.identity:
        raise RefusedError(
            f"{version} is of base model {ours.name}, {version.task}@{alias} is {current}, of {theirs.name}. What is "
            f"in use moves to another base model all together: run `promptstore upgrade-base` from {theirs.name}"
        )


def gate_fields(
    store: PromptStore, ref: Ref, alias: str = DEFAULT_ALIAS, slices: Iterable[str] = ()
) -> tuple[set[str], TaskSpec]:
    """The columns that a gate of `ref` reads, for the candidate, what `alias` points at and `slices`; the candidate's
    task.
    """
    version = store.resolve(ref)
    task = store.manifest(version.digest).task
    tasks = [task]
    if (against := current_number(store, version.task, alias)) is not None:
        current = store.resolve(PromptRef(version.task, number=against))
        tasks.append(store.manifest(current.digest).task)
    return {*slices, *(name for each in tasks for name in (*each.template_fields, each.target_field))}, task


def why_no_news(store: PromptStore, ref: Ref, alias: str = DEFAULT_ALIAS, *, only_newest: bool = False) -> str | None:
    """Why nothing is left to do for `ref`, which somebody asked for earlier: in use already, or overtaken.

    only_newest: a newer version overtakes it.
    """
    store.refresh()
    version = store.resolve(ref)
    if current_number(store, version.task, alias) == version.number:
        return f"{alias} is {version} already"
    if not only_newest:
        return None
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
