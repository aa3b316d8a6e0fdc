"""Copying a store to another place: same id, same bytes, same digests."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from promptstore.core.header import StoreHeader
from promptstore.core.state import StoreState
from promptstore.errors import ConflictError, CorruptError, NotFoundError
from promptstore.store.blobs import place_of
from promptstore.store.checkpoints import encode_hint
from promptstore.store.following import read_commit
from promptstore.store.header import create_header, read_header
from promptstore.store.layout import CHECKPOINTS, HINT_KEY, MANIFESTS, PAYLOADS, BlobKey, checkpoint_number, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.parallel import in_parallel
from promptstore.store.patience import DEFAULT_PATIENCE, Patience
from promptstore.store.reading import read_digest


@dataclass(frozen=True, slots=True)
class Copied:
    """What one run wrote; nothing where the copy was up to date."""

    commits: int
    blobs: int
    checkpoints: int


def copy_store(source: Ledger, target: ObjectStore, *, patience: Patience = DEFAULT_PATIENCE) -> Copied:
    """Bring `target` up to what `source` is now. Stopped anywhere, it goes on from there when it is run again.

    Bytes of kept versions first, then the commits in order, then checkpoints: a reader of the copy sees some earlier
    moment of the source. Bytes of versions that the source has expired since are not brought along. Bytes that the
    copy lost are brought back.

    Raises:
        ConflictError: `target` holds another store, or its log goes on in another way: a copy was written to.
        CorruptError: the source is damaged; nothing wrong was written.
    """
    _claim(source.header, target, patience)
    state = source.refresh()
    start = _first_missing_commit(source, target, state)
    blobs = _copy_blobs(source, target, state)
    commits = _copy_commits(source, target, range(start, state.number + 1))
    return Copied(commits, blobs, _copy_checkpoints(source, target, state.number))


def _claim(header: StoreHeader, target: ObjectStore, patience: Patience) -> None:
    """Looks first: a target that ignores create-only writes would lose the `store.json` of another store."""
    try:
        found = read_header(target)
    except NotFoundError:
        create_header(target, header, patience)
        found = read_header(target)
    if found != header:
        raise ConflictError(f"{target.url} holds another store; copy to an empty place")


def _first_missing_commit(source: Ledger, target: ObjectStore, state: StoreState) -> int:
    """By bisection: the target's log, as far as it goes, is the source's or the copy is refused."""
    there, missing = 0, state.number + 1
    while missing - there > 1:
        middle = (there + missing) // 2
        if _has_commit(target, middle):
            there = middle
        else:
            missing = middle
    if there == state.number and _has_commit(target, there + 1):
        raise ConflictError(f"{target.url} has commit {there + 1}, which the source has not: it was written to")
    if there and read_commit(target, there).digest != read_commit(source.objects, there).digest:
        raise ConflictError(f"{target.url} has another commit {there} than the source: it was written to")
    return missing


def _has_commit(objects: ObjectStore, number: int) -> bool:
    try:
        objects.get(commit_key(number))
    except NotFoundError:
        return False
    return True


def _copy_blobs(source: Ledger, target: ObjectStore, state: StoreState) -> int:
    there = {info.key for prefix in (PAYLOADS, MANIFESTS) for info in target.list(prefix)}
    wanted = dict.fromkeys(blob for blob in _kept_blobs(state) if str(blob) not in there)

    def copy(blob: BlobKey) -> bool:
        try:
            target.put(str(blob), read_digest(source.objects, str(blob), blob.digest))
        except NotFoundError as error:
            if blob in _kept_blobs(source.refresh()):
                raise CorruptError(f"{source.objects.url}/{blob} is missing; run `promptstore verify`") from error
            return False
        return True

    return sum(in_parallel(copy, wanted))


def _kept_blobs(state: StoreState) -> Iterator[BlobKey]:
    for task in state.tasks.values():
        for version in task.versions:
            if not version.is_expired:
                yield place_of(state, "payload", version.payload)
                yield place_of(state, "manifest", version.digest)


def _copy_commits(source: Ledger, target: ObjectStore, numbers: range) -> int:
    for commit in islice(source.commits(numbers.start), len(numbers)):
        key, data = commit_key(commit.number), commit.to_bytes()
        if not target.put_if_absent(key, data) and target.get(key) != data:
            raise ConflictError(f"{target.url} has another commit {commit.number} than the source")
    return len(numbers)


def _copy_checkpoints(source: Ledger, target: ObjectStore, last: int) -> int:
    there = {info.key for info in target.list(CHECKPOINTS)}
    copied = 0
    for info in source.objects.list(CHECKPOINTS):
        number = checkpoint_number(info.key)
        if number is None or number >= last or info.key in there:
            continue
        voucher = read_commit(source.objects, number + 1)
        if voucher.checkpoint is not None:
            target.put(info.key, read_digest(source.objects, info.key, voucher.checkpoint))
            target.put(HINT_KEY, encode_hint(number))
            copied += 1
    return copied
