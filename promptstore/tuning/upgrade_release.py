"""What an upgrade of the base model came to, and the one commit that brings it to users."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptstore.errors import RefusedError
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.job_gate import GateOutcome


@dataclass(frozen=True, slots=True)
class UpgradedTask:
    """One task on the new base. start: what its prompt began with. outcomes: one for each alias; none if it failed."""

    task: str
    start: str
    version: str | None = None
    outcomes: tuple[GateOutcome, ...] = ()
    failure: str | None = None

    @property
    def refusals(self) -> list[str]:
        if self.failure is not None:
            return [f"{self.task}: {self.failure}"]
        return [str(each) for each in self.outcomes if not each.has_passed]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What is ready on the new base. others: what was left alone because it does not stand on the old one."""

    model: str
    tasks: tuple[UpgradedTask, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What became of an upgrade. released: aliases that moved, all in one commit. refused: what failed, and why."""

    upgrade: Upgrade
    released: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def failures(self) -> Sequence[str]:
        return self.refused

    def require_released(self) -> None:
        """Raises RefusedError: something failed and nothing was released; no alias moved."""
        if self.refused and not self.released:
            raise RefusedError(f"nothing was released on {self.upgrade.model}: {'; '.join(self.refused)}")

    def __str__(self) -> str:
        if not self.upgrade.tasks:
            return f"nothing stands on the old base; {'; '.join(self.upgrade.others) or 'there is no such alias'}"
        released = f"released on {self.upgrade.model}: {', '.join(self.released) or 'nothing'}"
        return "; ".join([released, *self.refused])


def release_upgrade(
    store: PromptStore, upgrade: Upgrade, *, allow_partial: bool = False, actor: str | None = None
) -> UpgradeResult:
    """Move every alias to its task's new version, verdicts included, in one commit; none if one task is refused.

    allow_partial: move those of the tasks that passed. Verdicts are kept in the log either way.

    Raises:
        ConflictError: an alias moved since the versions were judged; no alias was moved, run the upgrade again.
    """
    store.refresh()
    refused = tuple(refusal for each in upgrade.tasks for refusal in each.refusals)
    ready = [each for each in upgrade.tasks if not each.refusals and (allow_partial or not refused)]
    for task in upgrade.tasks:
        if task not in ready:
            _keep_verdicts(store, task, actor)
    moves = [outcome for each in ready for outcome in each.outcomes]
    if moves:
        promotions = [Promotion(each.ref, each.alias, each.against, statements=[_statement(each)]) for each in moves]
        store.release(promotions, reason=f"upgrade to base model {upgrade.model}", actor=actor)
    return UpgradeResult(upgrade, tuple(f"{each.task}@{each.alias} -> {each.ref}" for each in moves), refused)


def _keep_verdicts(store: PromptStore, task: UpgradedTask, actor: str | None) -> None:
    """Into the log, unless they stand there. A version's latest verdict counts, so one that failed is said last."""
    said = [_statement(each) for each in sorted(task.outcomes, key=lambda each: not each.has_passed)]
    if not said:
        return
    ref = task.outcomes[0].ref
    known = [dict(each.body) for each in store.resolve(ref).attestations if each.kind == "gate"]
    if known[-len(said) :] == [dict(each.body) for each in said]:
        return
    for each in said:
        store.attest(ref, each.kind, each.body, reason=f"upgrade: {each.body['verdict']}", actor=actor)


def _statement(outcome: GateOutcome) -> Statement:
    """As `gate_version` says it (ADR 0020)."""
    body = {**outcome.verdict.to_json(), "alias": outcome.alias, "against": outcome.against}
    return Statement("gate", body)
