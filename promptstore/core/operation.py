"""The changes that one commit can make, atomically together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptstore.core.fields import Fields
from promptstore.core.task import check_name
from promptstore.errors import CorruptError


@dataclass(frozen=True, slots=True)
class Publish:
    """Give `manifest` (a digest) the task's next free number."""

    task: str
    number: int
    manifest: str


@dataclass(frozen=True, slots=True)
class MoveAlias:
    """Point `alias` at version `to`, if it points at `expected` now (`None`: it does not exist).

    forced: a protected alias was moved without a passing gate; the commit's reason says why.
    """

    task: str
    alias: str
    expected: int | None
    to: int
    forced: bool = False


@dataclass(frozen=True, slots=True)
class DeleteAlias:
    """Remove `alias`, if it points at `expected` now."""

    task: str
    alias: str
    expected: int


@dataclass(frozen=True, slots=True)
class Attest:
    """Say something about a version after it was published: an evaluation, a gate's verdict, an approval.

    body: small JSON; something larger is named in it by digest. A gate's body has `verdict`: `pass` or `fail`.
    """

    task: str
    number: int
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expire:
    """Un-name a version: its number stays taken, its bytes may be deleted after the grace period."""

    task: str
    number: int


Operation = Publish | MoveAlias | DeleteAlias | Attest | Expire


def operation_to_json(operation: Operation) -> dict[str, Any]:
    match operation:
        case Publish(task, number, manifest):
            return {"op": "publish", "task": task, "number": number, "manifest": manifest}
        case MoveAlias(task, alias, expected, to, forced):
            return {"op": "move_alias", "task": task, "alias": alias, "expected": expected, "to": to, "forced": forced}
        case DeleteAlias(task, alias, expected):
            return {"op": "delete_alias", "task": task, "alias": alias, "expected": expected}
        case Attest(task, number, kind, body):
            return {"op": "attest", "task": task, "number": number, "kind": kind, "body": dict(body)}
        case Expire(task, number):
            return {"op": "expire", "task": task, "number": number}


def operation_from_json(value: Any) -> Operation:
    """The operation in a JSON value.

    Raises:
        CorruptError: unknown kind of operation, or a field missing, unknown or of the wrong type.
    """
    fields = Fields(value, "operation")
    kind = fields.text("op")
    task = fields.text("task")
    check_name(task, "task name")
    operation: Operation
    match kind:
        case "publish":
            operation = Publish(task, fields.integer("number", at_least=1), fields.digest("manifest"))
        case "move_alias":
            alias = fields.text("alias")
            expected = fields.optional_integer("expected", at_least=1)
            operation = MoveAlias(task, alias, expected, fields.integer("to", at_least=1), fields.boolean("forced"))
        case "delete_alias":
            operation = DeleteAlias(task, fields.text("alias"), fields.integer("expected", at_least=1))
        case "attest":
            number = fields.integer("number", at_least=1)
            operation = Attest(task, number, fields.text("kind"), fields.mapping("body"))
        case "expire":
            operation = Expire(task, fields.integer("number", at_least=1))
        case _:
            raise CorruptError(f"operation {kind!r} is unknown; this store needs a newer promptstore")
    fields.done()
    return operation
