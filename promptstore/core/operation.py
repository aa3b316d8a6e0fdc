"""The changes that one commit can make, atomically together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from promptstore.core.fields import Fields
from promptstore.errors import CorruptError


@dataclass(frozen=True, slots=True)
class Publish:
    """Give the manifest with this digest, and the payload it names, the task's next free number."""

    task: str
    number: int
    manifest: str
    payload: str


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


@dataclass(frozen=True, slots=True)
class Condemn:
    """Give up the stored bytes of these digests, which no version kept needs; they may be deleted from now on.

    digests: of payloads and manifests, ascending. Bytes of one of them that are published again go to another place.
    """

    digests: tuple[str, ...]


Operation = Publish | MoveAlias | DeleteAlias | Attest | Expire | Condemn
OPERATIONS = ("publish", "move_alias", "delete_alias", "attest", "expire", "condemn")


def operation_to_json(operation: Operation) -> dict[str, Any]:
    match operation:
        case Publish(task, number, manifest, payload):
            return {"op": "publish", "task": task, "number": number, "manifest": manifest, "payload": payload}
        case MoveAlias(task, alias, expected, to, forced):
            return {"op": "move_alias", "task": task, "alias": alias, "expected": expected, "to": to, "forced": forced}
        case DeleteAlias(task, alias, expected):
            return {"op": "delete_alias", "task": task, "alias": alias, "expected": expected}
        case Attest(task, number, kind, body):
            return {"op": "attest", "task": task, "number": number, "kind": kind, "body": dict(body)}
        case Expire(task, number):
            return {"op": "expire", "task": task, "number": number}
        case Condemn(digests):
            return {"op": "condemn", "digests": list(digests)}


def operation_from_json(value: Any) -> Operation:
    """The operation in a JSON value.

    Raises:
        CorruptError: unknown kind of operation, or a field missing, unknown or of the wrong type.
    """
    fields = Fields(value, "operation")
    kind = fields.text("op")
    operation = Condemn(tuple(fields.digests("digests"))) if kind == "condemn" else _task_operation(kind, fields)
    fields.done()
    return operation


def _task_operation(kind: str, fields: Fields) -> Operation:
    task = fields.name("task")
    match kind:
        case "publish":
            number = fields.integer("number", at_least=1)
            return Publish(task, number, fields.digest("manifest"), fields.digest("payload"))
        case "move_alias":
            alias = fields.name("alias")
            expected = fields.optional_integer("expected", at_least=1)
            return MoveAlias(task, alias, expected, fields.integer("to", at_least=1), fields.boolean("forced"))
        case "delete_alias":
            return DeleteAlias(task, fields.name("alias"), fields.integer("expected", at_least=1))
        case "attest":
            number = fields.integer("number", at_least=1)
            return Attest(task, number, fields.name("kind"), fields.mapping("body"))
        case "expire":
            return Expire(task, fields.integer("number", at_least=1))
        case _:
            raise CorruptError(f"operation {kind!r} is unknown; this store needs a newer promptstore")
