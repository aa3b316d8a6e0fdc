"""`store.json`: what a store is, written once."""

from dataclasses import dataclass

from promptstore.core.digest import sha256_hex
from promptstore.core.fields import Fields
from promptstore.core.instant import parse_instant
from promptstore.core.sealed import seal, unseal
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError

STORE_FORMAT = 1
DEFAULT_PROTECTED_ALIASES = frozenset({"production"})


@dataclass(frozen=True, slots=True)
class StoreHeader:
    """A store's identity and the rules that its whole log obeys. Its digest is the parent of commit 1.

    protected_aliases: move only to a version with a passing gate, or by force with a reason.
    """

    id: str
    created_at: str
    protected_aliases: frozenset[str] = DEFAULT_PROTECTED_ALIASES

    def to_bytes(self) -> bytes:
        return seal(
            {
                "format": STORE_FORMAT,
                "id": self.id,
                "created_at": self.created_at,
                "protected_aliases": sorted(self.protected_aliases),
            }
        )

    @property
    def digest(self) -> str:
        return sha256_hex(self.to_bytes())

    def empty_state(self) -> StoreState:
        """The fold of this store's log before commit 1."""
        return StoreState(self.id, 0, self.digest, protected_aliases=self.protected_aliases)

    @classmethod
    def from_bytes(cls, data: bytes) -> "StoreHeader":
        """The header in `data`.

        Raises:
            CorruptError: not a `store.json` of a format this version reads.
        """
        what = "store.json"
        fields = Fields(unseal(data, what), what)
        if (found := fields.integer("format")) != STORE_FORMAT:
            raise CorruptError(f"{what} has format {found}, this promptstore reads {STORE_FORMAT}; upgrade it")
        header = cls(
            id=fields.text("id"),
            created_at=fields.text("created_at"),
            protected_aliases=frozenset(fields.names("protected_aliases")),
        )
        fields.done()
        parse_instant(header.created_at, f"{what}: created_at")
        if header.to_bytes() != data:
            raise CorruptError(f"{what}: protected_aliases are not in canonical order")
        return header
