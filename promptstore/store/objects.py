"""The port that every object-store driver implements."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A listed object. modified_at: by the store's own clock, in UTC."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """A bucket, folder or dict: immutable-minded storage of small objects under `/`-separated keys.

    Every method blocks, is safe to call from many threads, and raises
    `StoreUnavailableError` when the store cannot be reached (a read, or a write that surely did not happen).
    """

    @property
    def url(self) -> str:
        """How people name this store, without secrets."""

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFoundError: there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write, or overwrite whole; a reader sees the old bytes or the new, never a mix."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; `False`, and no change, if the key exists. Of two concurrent calls exactly one gets `True`.

        `False` may also mean that an earlier try of this very call created it and its answer was lost:
        the caller reads back and compares.

        Raises:
            CommitOutcomeUnknownError: the store stopped answering; the object may have been created or may be yet.
        """

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` and sorts after `start_after`, in ascending order of key bytes."""

    def delete(self, key: str) -> None:
        """Remove; silent if there is none. Only garbage collection and quarantine call this."""
