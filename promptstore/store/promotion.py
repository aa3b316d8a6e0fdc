"""Moving aliases: what to commit so that one points where it should."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from promptstore.core.digest import canonical_json
from promptstore.core.operation import Attest, MoveAlias, Operation
from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import PromptVersion, StoreState, TaskState
from promptstore.errors import ConflictError, InvalidInputError, NotFoundError


class AnyVersion(Enum):
    """The type of `ANY`: no matter where the alias points now."""

    ANY = "any"


ANY: Final = AnyVersion.ANY
Expected = int | None | AnyVersion
MAX_STATEMENT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Statement:
    """An attestation to be made. body: small JSON; a gate's says `verdict`: `pass` or `fail`."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Promotion:
    """One alias to be pointed at one version.

    expected: the version it must point at now, `None` if it must not exist yet.
    force: move a protected alias without a passing gate; the log keeps that and the reason.
    statements: attested to the version first, in the same commit: the gate that allows the move, say.
    """

    ref: PromptRef
    alias: str = DEFAULT_ALIAS
    expected: Expected = ANY
    force: bool = False
    statements: Sequence[Statement] = ()


def promotion_operations(state: StoreState, promotion: Promotion) -> list[Operation]:
    """What brings `promotion` about in `state`; nothing where it is so already, so repeating it is safe.

    Raises:
        ConflictError: the alias points neither at the target nor where `expected` says.
        NotFoundError: no such version.
    """
    return move_operations(state, state.resolve(promotion.ref), promotion)


def move_operations(state: StoreState, version: PromptVersion, promotion: Promotion) -> list[Operation]:
    """As `promotion_operations`, for a `version` that the same commit may be about to publish."""
    said = (attest_operation(version, each) for each in promotion.statements)
    operations: list[Operation] = [each for each in said if each is not None]
    aliases = state.tasks[version.task].aliases if version.task in state.tasks else {}
    current = aliases.get(promotion.alias)
    if current == version.number:
        return operations
    if promotion.expected is not ANY and current != promotion.expected:
        raise ConflictError(
            f"{version.task}@{promotion.alias} points at {_named(current)}, expected {_named(promotion.expected)}; "
            "somebody moved it: look at `promptstore history` and decide again"
        )
    needs_force = promotion.alias in state.protected_aliases and not _will_have_passed(version, promotion.statements)
    forced = promotion.force and needs_force
    return [*operations, MoveAlias(version.task, promotion.alias, current, version.number, forced)]


def attest_operation(version: PromptVersion, said: Statement) -> Attest | None:
    """What makes the statement; `None` if it is the last one of its kind already.

    Raises:
        InvalidInputError: its body is no JSON, or too large for what every reader keeps in memory.
    """
    body = canonical_json(dict(said.body))
    if len(body) > MAX_STATEMENT_BYTES:
        raise InvalidInputError(
            f"{said.kind} of {version} has {len(body)} bytes, at most {MAX_STATEMENT_BYTES} fit; "
            "keep the details elsewhere (an MLflow artifact, say) and name them by digest"
        )
    earlier = [each.body for each in version.attestations if each.kind == said.kind]
    if earlier and canonical_json(dict(earlier[-1])) == body:
        return None
    return Attest(version.task, version.number, said.kind, said.body)


def rollback_target(task: TaskState, alias: str, to: int | None = None) -> int:
    """The version that `alias` pointed at before what it points at now, passing over expired ones; or `to`.

    A rollback undoes: rolling back twice goes back by two versions, not to and fro.

    Raises:
        NotFoundError: the alias does not exist, never pointed at another version that is still kept, or never at `to`.
    """
    if to is not None:
        if alias not in task.aliases or to not in {move.after for move in task.moves if move.alias == alias}:
            raise NotFoundError(
                f"{task.name}@{alias} has never pointed at version {to}, so there is no way back to it; promote it"
            )
        return to
    held: list[int] = []
    for move in task.moves:
        if move.alias != alias or move.after is None:
            continue
        if move.after in held:
            del held[held.index(move.after) + 1 :]
        else:
            held.append(move.after)
    current = task.aliases.get(alias)
    if current is None:
        raise NotFoundError(f"{task.name} has no alias {alias!r} to roll back")
    for number in reversed(held):
        if number != current and not task.version(number).is_expired:
            return number
    raise NotFoundError(f"{task.name}@{alias} has pointed at no other version that is still kept; promote one instead")


def _will_have_passed(version: PromptVersion, statements: Sequence[Statement]) -> bool:
    verdicts = [each.body.get("verdict") for each in statements if each.kind == "gate"]
    return verdicts[-1] == "pass" if verdicts else version.has_passed_gate


def _named(number: object) -> str:
    return "nothing" if number is None else f"version {number}"
