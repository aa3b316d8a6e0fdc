"""One entry of the log."""

from dataclasses import dataclass, replace
from typing import Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.fields import Fields
from promptstore.core.instant import parse_instant
from promptstore.core.operation import Operation, operation_from_json, operation_to_json
from promptstore.core.sealed import seal, unseal
from promptstore.errors import CorruptError, InvalidInputError

COMMIT_FORMAT = 1
CHECKPOINT_EVERY = 100
MAX_COMMIT_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """An Ed25519 signature over `Commit.signed_bytes`. key: SHA-256 of the raw public key; value: base64."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Commit:
    """An immutable, numbered change of the store.

    number: from 1, without gaps.
    id: unique to one attempt to commit; tells a writer whether a commit whose answer was lost is its own.
    parent: SHA-256 of the bytes of commit `number - 1`, or of `store.json` for commit 1.
    at: RFC 3339 in UTC with microseconds, never before the parent's.
    checkpoint: SHA-256 of the checkpoint of the state this commit builds on; set on commits 101, 201, … and only there.
    """

    number: int
    id: str
    parent: str
    at: str
    actor: str
    reason: str
    operations: tuple[Operation, ...]
    checkpoint: str | None = None
    signatures: tuple[Signature, ...] = ()

    def to_bytes(self) -> bytes:
        signatures = [{"key": each.key, "value": each.value} for each in self.signatures]
        return seal({**self._unsigned(), "signatures": signatures})

    def signed_bytes(self) -> bytes:
        """What a signature covers: everything but the signatures and the seal."""
        return canonical_json(self._unsigned())

    @property
    def digest(self) -> str:
        return sha256_hex(self.to_bytes())

    def with_signature(self, signature: Signature) -> "Commit":
        return replace(self, signatures=(*self.signatures, signature))

    def _unsigned(self) -> dict[str, Any]:
        return {
            "format": COMMIT_FORMAT,
            "number": self.number,
            "id": self.id,
            "parent": self.parent,
            "at": self.at,
            "actor": self.actor,
            "reason": self.reason,
            "operations": [operation_to_json(operation) for operation in self.operations],
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_bytes(cls, data: bytes, number: int) -> "Commit":
        """The commit in `data`, which was read from the place of commit `number`.

        Raises:
            CorruptError: not a commit of a format this version reads, or another number than its place.
        """
        what = f"commit {number}"
        if len(data) > MAX_COMMIT_BYTES:
            raise CorruptError(f"{what} has {len(data)} bytes, expected at most {MAX_COMMIT_BYTES}")
        fields = Fields(unseal(data, what), what)
        if (found := fields.integer("format")) != COMMIT_FORMAT:
            raise CorruptError(f"{what} has format {found}, this promptstore reads {COMMIT_FORMAT}; upgrade it")
        try:
            commit = _read(fields)
        except InvalidInputError as error:
            raise CorruptError(f"{what}: {error}") from error
        fields.done()
        parse_instant(commit.at, f"{what}: at")
        if commit.number != number:
            raise CorruptError(f"{what} says it is commit {commit.number}")
        if (commit.checkpoint is not None) != names_checkpoint(number):
            raise CorruptError(f"{what}: a checkpoint is named by commits 101, 201, … and only by them")
        return commit


def names_checkpoint(number: int) -> bool:
    """Whether commit `number` names the checkpoint of the state it builds on."""
    return number > 1 and number % CHECKPOINT_EVERY == 1


def _read(fields: Fields) -> Commit:
    return Commit(
        number=fields.integer("number", at_least=1),
        id=fields.text("id"),
        parent=fields.digest("parent"),
        at=fields.text("at"),
        actor=fields.text("actor"),
        reason=fields.text("reason"),
        operations=tuple(operation_from_json(item) for item in fields.array("operations")),
        checkpoint=fields.optional_digest("checkpoint"),
        signatures=tuple(_signature(item) for item in fields.array("signatures")),
    )


def _signature(value: Any) -> Signature:
    fields = Fields(value, "signature")
    signature = Signature(key=fields.digest("key"), value=fields.text("value"))
    fields.done()
    return signature
