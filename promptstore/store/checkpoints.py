"""Folded states in the store, so that a cold start does not read the whole log. FORMAT.md, section 6.

A checkpoint is only ever a shortcut: it counts when a commit of the log names its digest, and a reader that finds it
missing, stale or damaged folds the commits instead.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress

import zstandard

from promptstore.core.checkpoint import checkpoint_from_bytes, checkpoint_to_bytes
from promptstore.core.commit import CHECKPOINT_EVERY, names_checkpoint
from promptstore.core.digest import sha256_hex
from promptstore.core.fields import Fields
from promptstore.core.header import StoreHeader
from promptstore.core.sealed import seal, unseal
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError, NotFoundError, PromptStoreError
from promptstore.store.following import Accept, follow, read_commit
from promptstore.store.layout import CHECKPOINTS, HINT_KEY, checkpoint_key, checkpoint_number
from promptstore.store.objects import ObjectStore
from promptstore.store.reading import read, read_digest

HINT_FORMAT = 1
_MAX_STATE_BYTES = 4 << 30
_log = logging.getLogger(__name__)


def encode_checkpoint(state: StoreState) -> bytes:
    """The object that holds `state`; the next commit names its SHA-256."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(checkpoint_to_bytes(state))


def decode_checkpoint(data: bytes, header: StoreHeader) -> StoreState:
    """The state in a checkpoint object. The caller has checked that a commit names its SHA-256.

    Raises:
        CorruptError: not a checkpoint of this store.
    """
    try:
        if not 0 <= zstandard.frame_content_size(data) <= _MAX_STATE_BYTES:
            raise CorruptError("checkpoint does not say its size, or one beyond 4 GiB")
        return checkpoint_from_bytes(zstandard.ZstdDecompressor().decompress(data), header)
    except zstandard.ZstdError as error:
        raise CorruptError(f"checkpoint cannot be decompressed: {error}") from error


def leave_checkpoint(objects: ObjectStore, number: int, base: StoreState, checkpoint: bytes | None) -> None:
    """What the writer of commit `number` does after it: leave the checkpoint of `base`, or the hint one commit later.

    Two different commits, so that none costs more than one call beyond its own. Failing to leave either costs readers
    time and nothing else, so a fault is logged and not raised: the commit stands.
    """
    try:
        if checkpoint is not None:
            objects.put(checkpoint_key(base.number), checkpoint)
        elif names_checkpoint(base.number):
            objects.put(HINT_KEY, encode_hint(base.number - 1))
    except PromptStoreError as error:
        _log.warning("no checkpoint left after commit %d: %s", number, error)


def mend_checkpoint(objects: ObjectStore, header: StoreHeader, head: StoreState, accept: Accept) -> bool:
    """Put the newest checkpoint and the hint where the writer of the log died before it did; whether it was needed.

    Does nothing where this version of Zstandard makes other bytes than the ones that the log names.
    """
    number = (head.number - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    if number < CHECKPOINT_EVERY:
        return False
    with suppress(NotFoundError, CorruptError):
        if read_checkpoint(objects, header, number, accept) and read(objects, HINT_KEY, decode_hint) == number:
            return False
    state = load_checkpoint(objects, header, accept, at_most=number)
    for later, _ in follow(objects, state, accept, stop=number + 1):
        state = later
    checkpoint = encode_checkpoint(state)
    if sha256_hex(checkpoint) != read_commit(objects, number + 1).checkpoint:
        return False
    objects.put(checkpoint_key(number), checkpoint)
    objects.put(HINT_KEY, encode_hint(number))
    return True


def encode_hint(number: int) -> bytes:
    return seal({"format": HINT_FORMAT, "checkpoint": number})


def decode_hint(data: bytes) -> int:
    """The number of the checkpoint that a hint names. Raises CorruptError."""
    fields = Fields(unseal(data, HINT_KEY), HINT_KEY)
    if (found := fields.integer("format")) != HINT_FORMAT:
        raise CorruptError(f"{HINT_KEY} has format {found}, this promptstore reads {HINT_FORMAT}")
    number = fields.integer("checkpoint", at_least=1)
    fields.done()
    return number


def load_checkpoint(
    objects: ObjectStore, header: StoreHeader, accept: Accept, *, at_most: int | None = None
) -> StoreState:
    """The newest state that a checkpoint of the log holds; the empty state if there is none to be had.

    at_most: take none of a later commit.
    """
    for number in _candidates(objects, at_most):
        try:
            return read_checkpoint(objects, header, number, accept)
        except (NotFoundError, CorruptError) as error:
            _log.warning("%s: checkpoint %d is of no use: %s", objects.url, number, error)
    return header.empty_state()


def read_checkpoint(objects: ObjectStore, header: StoreHeader, number: int, accept: Accept) -> StoreState:
    """The state at commit `number`, vouched for by commit `number + 1`.

    Raises:
        NotFoundError: the checkpoint or that commit does not exist.
        CorruptError: the checkpoint is not the one that the commit names.
    """
    voucher = read_commit(objects, number + 1)
    accept(voucher)
    if voucher.checkpoint is None:
        raise CorruptError(f"commit {voucher.number} names no checkpoint")
    state = decode_checkpoint(read_digest(objects, checkpoint_key(number), voucher.checkpoint), header)
    if (state.number, state.digest) != (number, voucher.parent):
        raise CorruptError(f"checkpoint {number} is of another commit than its name says")
    return state


def _candidates(objects: ObjectStore, at_most: int | None) -> Iterator[int]:
    """Numbers of checkpoints that may exist, newest first. The hint saves listing all the old ones."""
    hinted = 0
    if at_most is None:
        with suppress(NotFoundError, CorruptError):
            hinted = read(objects, HINT_KEY, decode_hint)
    if hinted:
        yield from _listed(objects, checkpoint_key(hinted))
        yield hinted
    for number in _listed(objects, ""):
        if number < (hinted or number + 1) and (at_most is None or number <= at_most):
            yield number


def _listed(objects: ObjectStore, start_after: str) -> list[int]:
    """Numbers of the checkpoints after a key, newest first."""
    numbers = (checkpoint_number(info.key) for info in objects.list(CHECKPOINTS, start_after=start_after))
    return sorted((number for number in numbers if number is not None), reverse=True)
