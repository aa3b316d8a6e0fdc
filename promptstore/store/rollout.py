"""Progressive delivery: an alias sends a share of its traffic to a second version, or asks it on the side.

A rollout is a statement about the version that is on trial, so every replica that follows the log sees it, and what
happened stays in the log. Why not an operation of its own: infra/adr/0042.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import Attestation, PromptVersion, StoreState, TaskState
from promptstore.core.task import TaskSpec
from promptstore.errors import ConflictError, InvalidInputError, NotFoundError, RefusedError
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore

KIND = "rollout"
RolloutMode = Literal["share", "shadow"]
AliasKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a server gives a rollout up by itself, judged once the version on trial has given `min_answers`.

    max_error_rate: share of failed answers. max_latency_ratio: median seconds, against the version in place.
    min_agreement: share of equal answers; `None` is no bound. Under a share it has what the version on trial answers
        asked of the version in place, too, on the side.
    """

    min_answers: int = 100
    max_error_rate: float = 0.02
    max_latency_ratio: float = 2.0
    min_agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on trial for an alias. share: of the alias's requests, 0 to 1; all of them in a shadow.

    commit: where it was started, which tells one rollout of a version from the next.
    """

    task: str
    alias: str
    number: int
    mode: RolloutMode
    share: float
    bounds: Bounds
    commit: int


def active_rollouts(state: StoreState) -> Mapping[AliasKey, Rollout]:
    """Every rollout that was started and neither finished nor aborted; any move of the alias since has ended it."""
    found: dict[AliasKey, Rollout] = {}
    for task in state.tasks.values():
        for alias, said in _latest(task).items():
            version, statement = said
            is_on_trial = statement.body.get("state") == "started" and not version.is_expired
            if is_on_trial and task.aliases.get(alias) not in {None, version.number}:
                rollout = _read(task.name, alias, version.number, statement)
                if rollout is not None and _moved_in(task, alias) <= _seen_in(statement):
                    found[task.name, alias] = rollout
    return found


def start_rollout(
    store: PromptStore,
    ref: PromptRef | str,
    alias: str = DEFAULT_ALIAS,
    *,
    mode: RolloutMode = "share",
    share: float = 0.1,
    bounds: Bounds | None = None,
    reason: str = "",
    force: bool = False,
) -> Rollout:
    """Puts a version on trial for `alias`. force: a protected alias's traffic may reach it without a passing gate.

    Raises:
        InvalidInputError: a share, mode or bound out of range, or callers would have to ask the version in another way
            than the one in place: another kind of task, other input fields or labels.
        NotFoundError: no such version, or the alias points at nothing: promote first.
        ConflictError: the alias points at this version already, another one is on trial for it, or it was moved
            meanwhile.
        CorruptError: the bytes that say what one of them is asked are damaged.
        RefusedError: the alias is protected and the version has no passing gate; a shadow needs none.
    """
    bounds = bounds or Bounds()
    _check(mode, share, bounds)
    state = store.refresh()
    version = state.resolve(PromptRef.parse(ref) if isinstance(ref, str) else ref)
    current = state.resolve(PromptRef(version.task, alias=alias))
    if current.number == version.number:
        raise ConflictError(f"{version.task}@{alias} points at {version} already; there is nothing to try")
    running = active_rollouts(state).get((version.task, alias))
    if running is not None and running.number != version.number:
        raise ConflictError(
            f"{version.task}:{running.number} is on trial for {version.task}@{alias}; finish or abort that first"
        )
    _check_alike(store, current, version)
    needs_gate = mode == "share" and alias in state.protected_aliases and not force
    if needs_gate and not version.has_passed_gate:
        raise RefusedError(
            f"{version.task}@{alias} is protected and {version} has no passing gate; run the gate, try it as a shadow, "
            "or force the rollout with a reason"
        )
    body = {
        "alias": alias,
        "state": "started",
        "mode": mode,
        "share": float(share),
        "bounds": _bounds_json(bounds),
        # Without it the same rollout after a move would be the same statement, and saying that again adds nothing.
        "seen": _moved_in(state.task(version.task), alias),
    }
    store.attest(PromptRef(version.task, number=version.number), KIND, body, reason=reason)
    started = active_rollouts(store.state).get((version.task, alias))
    if started is None:
        raise ConflictError(f"{version.task}@{alias} was moved while the rollout started; decide again")
    return started


def finish_rollout(
    store: PromptStore, task: str, alias: str = DEFAULT_ALIAS, *, reason: str = "", force: bool = False
) -> PromptVersion:
    """Points the alias at the version on trial, in the same commit. Raises as `PromptStore.promote`."""
    rollout = _running(store, task, alias)
    said = Statement(KIND, {"alias": alias, "state": "finished"})
    promotion = Promotion(PromptRef(task, number=rollout.number), alias, force=force, statements=[said])
    return store.release([promotion], reason=reason)[0]


def abort_rollout(
    store: PromptStore, task: str, alias: str = DEFAULT_ALIAS, *, why: str = "", commit: int | None = None
) -> PromptVersion:
    """Ends the trial; the alias stays. commit: only the rollout that was started there.

    Raises:
        NotFoundError: there is no such rollout, or none any more.
    """
    rollout = _running(store, task, alias)
    if commit is not None and rollout.commit != commit:
        raise NotFoundError(f"the rollout that commit {commit} started for {task}@{alias} is over")
    body = {"alias": alias, "state": "aborted", "why": why}
    return store.attest(PromptRef(task, number=rollout.number), KIND, body, reason=why)


def _running(store: PromptStore, task: str, alias: str) -> Rollout:
    rollout = active_rollouts(store.refresh()).get((task, alias))
    if rollout is None:
        raise NotFoundError(f"no version is on trial for {task}@{alias}; `promptstore rollout start` begins one")
    return rollout


def _moved_in(task: TaskState, alias: str) -> int:
    """The commit of the alias's last move."""
    return max((move.commit for move in task.moves if move.alias == alias), default=0)


def _seen_in(started: Attestation) -> int:
    """The last move of the alias that whoever started the rollout knew of; earlier writers did not say which."""
    seen = started.body.get("seen", started.commit)
    return seen if isinstance(seen, int) else 0


def _latest(task: TaskState) -> Mapping[str, tuple[PromptVersion, Attestation]]:
    """By alias, the last statement of this kind about any version."""
    latest: dict[str, tuple[PromptVersion, Attestation]] = {}
    for version in task.versions:
        for statement in version.attestations:
            alias = statement.body.get("alias")
            if statement.kind != KIND or not isinstance(alias, str):
                continue
            if alias not in latest or statement.commit >= latest[alias][1].commit:
                latest[alias] = (version, statement)
    return latest


def _read(task: str, alias: str, number: int, statement: Attestation) -> Rollout | None:
    """The rollout in a statement; `None` if another writer said something that this one does not understand."""
    body = statement.body
    try:
        bounds = Bounds(**body.get("bounds", {}))
        mode, share = body["mode"], float(body["share"])
        _check(mode, share, bounds)
    except (InvalidInputError, KeyError, TypeError, ValueError):
        return None
    return Rollout(task, alias, number, mode, share, bounds, statement.commit)


def _check(mode: str, share: float, bounds: Bounds) -> None:
    if mode not in get_args(RolloutMode):
        raise InvalidInputError(f"rollout mode is {mode!r}, expected one of {', '.join(get_args(RolloutMode))}")
    if not (math.isfinite(share) and 0 < share <= 1):
        raise InvalidInputError(f"rollout share is {share!r}, expected more than 0 and at most 1")
    agreement = bounds.min_agreement
    if not (bounds.min_answers >= 1 and bounds.max_error_rate >= 0 and bounds.max_latency_ratio > 0):
        raise InvalidInputError(f"rollout bounds are {bounds}: at least 1 answer, and no negative bound")
    if agreement is not None and not 0 <= agreement <= 1:
        raise InvalidInputError(f"rollout bound min_agreement is {agreement!r}, expected 0 to 1")


def _check_alike(store: PromptStore, current: PromptVersion, version: PromptVersion) -> None:
    before, after = (_asked(store.manifest(each.digest).task) for each in (current, version))
    other = [after[what] for what in after if after[what] != before[what]]
    if other:
        raise InvalidInputError(
            f"{version} has the {' and the '.join(other)}, unlike {current}, so requests for it would fail or be "
            "misread; tell its callers and promote it, or give it an alias of its own"
        )


def _asked(task: TaskSpec) -> Mapping[str, str]:
    """What a caller has to know of a task; template and verbalisers are nothing to it."""
    return {
        "kind": f"kind {task.kind}",
        "fields": f"input fields {', '.join(sorted(task.template_fields))}",
        "labels": f"labels {', '.join(sorted(task.label_names))}",
    }


def _bounds_json(bounds: Bounds) -> Mapping[str, Any]:
    return {
        "min_answers": bounds.min_answers,
        "max_error_rate": bounds.max_error_rate,
        "max_latency_ratio": bounds.max_latency_ratio,
        "min_agreement": bounds.min_agreement,
    }
