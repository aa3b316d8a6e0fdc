"""Deleting what no version needs. FORMAT.md, section 7; why it is safe: infra/adr/0003."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from promptstore.core.fold import needed_digests
from promptstore.core.operation import Condemn, Operation
from promptstore.core.state import StoreState
from promptstore.errors import StoreUnavailableError
from promptstore.store.layout import (
    CHECKPOINTS,
    CLOCK,
    MANIFESTS,
    PAYLOADS,
    BlobKey,
    checkpoint_number,
    commit_key,
)
from promptstore.store.ledger import Ledger, random_id
from promptstore.store.objects import ObjectInfo, ObjectStore
from promptstore.store.parallel import in_parallel

DEFAULT_GRACE = timedelta(days=7)
NEWEST_CHECKPOINTS_KEPT = 4
OLD_CHECKPOINTS_KEPT_EVERY = 1000
CLOCK_TRIES = 5
_DIGESTS_PER_COMMIT = 20_000

Reason = Literal["orphan", "expired", "condemned", "superseded checkpoint", "leftover"]


@dataclass(frozen=True, slots=True)
class Garbage:
    """An object that may go.

    reason: nothing ever named it; its versions are expired; it was condemned before, by a collector that did not
    finish; a newer checkpoint makes it needless; a collector's own litter.
    """

    key: str
    size_bytes: int
    reason: Reason


def collect_garbage(
    ledger: Ledger,
    *,
    grace: timedelta = DEFAULT_GRACE,
    dry_run: bool = True,
    reason: str = "garbage collection",
    new_id: Callable[[], str] = random_id,
) -> list[Garbage]:
    """Delete what no version needs and has been so for longer than `grace` by the object store's clock; what it was.

    Safe while others publish, and while others collect; safe to stop anywhere and to repeat.

    dry_run: only say what would go.
    """
    objects = ledger.objects
    now = _store_clock(objects, new_id)
    listed = _list_blobs(objects)
    found = [*_blob_garbage(ledger, listed, now - grace), *_other_garbage(objects, now - grace)]
    if dry_run:
        return found
    _condemn(ledger, [BlobKey.parse(each.key) for each in found if each.reason in {"orphan", "expired"}], reason)
    condemned = ledger.state.condemned
    deletable = [each for each in found if _is_dead(BlobKey.parse(each.key), condemned)]
    for _ in in_parallel(objects.delete, [each.key for each in deletable]):
        pass
    return deletable


def _store_clock(objects: ObjectStore, new_id: Callable[[], str]) -> datetime:
    """The time by the object store's own clock, the one that dates its objects."""
    for _ in range(CLOCK_TRIES):
        key = f"{CLOCK}{new_id()}"
        objects.put(key, b"")
        try:
            for info in objects.list(key):
                return info.modified_at
        finally:
            objects.delete(key)
        # Another collector, one without any grace, took it for litter.
    raise StoreUnavailableError(f"{objects.url} does not list what was just written; nothing was deleted, repeat later")


def _list_blobs(objects: ObjectStore) -> dict[BlobKey, ObjectInfo]:
    listed = (info for prefix in (PAYLOADS, MANIFESTS) for info in objects.list(prefix))
    blobs = ((BlobKey.parse(info.key), info) for info in listed)
    return {blob: info for blob, info in blobs if blob is not None}


def _blob_garbage(ledger: Ledger, listed: Mapping[BlobKey, ObjectInfo], before: datetime) -> Iterator[Garbage]:
    """Payloads and manifests without use since `before`. The log is read after the listing, so it knows more."""
    state = ledger.refresh()
    needed = needed_digests(state, {blob.digest for blob in listed})
    expiries = _expiries(state)
    idle = []
    for blob, info in listed.items():
        generation = state.condemned.get(blob.digest, 0)
        if blob.generation < generation:
            yield Garbage(info.key, info.size_bytes, "condemned")
        elif blob.generation == generation and blob.digest not in needed and info.modified_at < before:
            idle.append((info, expiries.get(blob.digest)))
    expired_at = _commit_times(ledger.objects, {commit for _, commit in idle if commit is not None})
    for info, commit in idle:
        if commit is None:
            yield Garbage(info.key, info.size_bytes, "orphan")
        elif expired_at[commit] < before:
            yield Garbage(info.key, info.size_bytes, "expired")


def _expiries(state: StoreState) -> dict[str, int]:
    """By digest, the last commit that expired a version which has it."""
    found: dict[str, int] = {}
    for task in state.tasks.values():
        for version in task.versions:
            if version.expired_in is not None:
                for digest in (version.digest, version.payload):
                    found[digest] = max(found.get(digest, 0), version.expired_in)
    return found


def _commit_times(objects: ObjectStore, numbers: Collection[int]) -> dict[int, datetime]:
    """When each commit was stored, by the object store's clock."""

    def stored_at(number: int) -> datetime:
        return next(info.modified_at for info in objects.list(commit_key(number)))

    return dict(zip(numbers, in_parallel(stored_at, numbers), strict=True))


def _other_garbage(objects: ObjectStore, before: datetime) -> Iterator[Garbage]:
    checkpoints = [(checkpoint_number(info.key), info) for info in objects.list(CHECKPOINTS)]
    numbered = [(number, info) for number, info in checkpoints if number is not None]
    for number, info in numbered[:-NEWEST_CHECKPOINTS_KEPT]:
        if number % OLD_CHECKPOINTS_KEPT_EVERY:
            yield Garbage(info.key, info.size_bytes, "superseded checkpoint")
    for info in objects.list(CLOCK):
        if info.modified_at < before:
            yield Garbage(info.key, info.size_bytes, "leftover")


def _condemn(ledger: Ledger, blobs: Iterable[BlobKey | None], reason: str) -> None:
    """Commit that the bytes at those places may be deleted, where it is still so."""
    places = {blob.digest: blob.generation for blob in blobs if blob is not None}
    digests = sorted(places)
    for start in range(0, len(digests), _DIGESTS_PER_COMMIT):
        some = digests[start : start + _DIGESTS_PER_COMMIT]

        def build(state: StoreState, some: Sequence[str] = some) -> list[Operation]:
            idle = set(some) - needed_digests(state, some)
            current = sorted(each for each in idle if state.condemned.get(each, 0) == places[each])
            return [Condemn(tuple(current))] if current else []

        ledger.commit(build, reason=reason)


def _is_dead(blob: BlobKey | None, condemned: Mapping[str, int]) -> bool:
    """Whether nothing that is ever published will be looked for at that place; so for all that is no blob, too."""
    return blob is None or blob.generation < condemned.get(blob.digest, 0)
