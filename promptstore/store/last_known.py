"""What this machine last knew of a store, so that a server can start while the store is away."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from promptstore.core.header import StoreHeader
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError
from promptstore.store.checkpoints import decode_checkpoint, encode_checkpoint
from promptstore.store.files import write_atomically

# A save is due when the last one is that many times its own duration ago: large states are kept less often, and a
# promotion that comes during a save, and is seen later for it, is one of as many.
_REST = 300.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A store as it was when it was last seen. seen_at: Unix seconds."""

    header: StoreHeader
    state: StoreState
    seen_at: float


class LastKnown:
    """One store's last state in a file: `store.json`, a line break, and a checkpoint as FORMAT.md, section 6, has it.
    Of a store without commits nothing is kept.

    The file's time is when the store was last seen to be so. Many processes may share the folder.

    identity: what it must have been known by to be taken: the store's place, and whose commits count. clock: monotonic
    seconds.
    """

    def __init__(self, folder: Path, identity: Iterable[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        name = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]
        self._path = folder / name
        self._clock = clock
        self._saved: StoreState | None = None
        self._due_at = clock()
        self._is_failing = False

    def save(self, header: StoreHeader, state: StoreState, *, unseen_s: float = 0.0) -> None:
        """Take note that the store was at `state` when it was last seen, `unseen_s` ago. For one thread; cheap while
        nothing is new.

        A disk that takes nothing is logged and stops nobody.
        """
        try:
            if state is not self._saved and state.number and self._clock() >= self._due_at:
                self._write(header, state)
            if state is self._saved:
                seen_at = time.time() - unseen_s
                os.utime(self._path, (seen_at, seen_at))
            self._is_failing = False
        except OSError as error:
            self._saved = None
            if not self._is_failing:
                _log.warning("commit %d is not remembered for a start without the store: %s", state.number, error)
            self._is_failing = True

    def load(self) -> Known | None:
        """What was last known; `None` if nothing is, or what is there is damaged, which is logged."""
        try:
            data = self._path.read_bytes()
            seen_at = self._path.stat().st_mtime
        except OSError:
            return None
        first, _, rest = data.partition(b"\n")
        try:
            header = StoreHeader.from_bytes(first)
            return Known(header, decode_checkpoint(rest, header), seen_at)
        except CorruptError as error:
            _log.warning("what was last known of the store is of no use: %s: %s", self._path, error)
            return None

    def _write(self, header: StoreHeader, state: StoreState) -> None:
        begun = self._clock()
        data = header.to_bytes() + b"\n" + encode_checkpoint(state)
        done = self._clock()
        self._due_at = done + _REST * (done - begun)
        # Not durable: a crash of the machine costs a later start no more than the next look at the store.
        write_atomically(self._path, data, is_durable=False)
        self._saved = state
