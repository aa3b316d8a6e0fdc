"""Events that could not be sent, as JSON lines on disk until they can."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from promptstore.errors import CorruptError
from promptstore.tracking.events import Event, event_from_json, event_to_json

SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class SpooledEvent:
    """An event and the line that holds it."""

    event: Event
    line: bytes


class Spool:
    """One file of events in the order they happened; safe for several processes, as when a job runs twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_empty(self) -> bool:
        return not self.path.exists()

    def append(self, events: Iterable[Event]) -> int:
        """Keep `events` beyond the end of this process; how many. Raises OSError: no room, or no right to."""
        lines = [json.dumps(event_to_json(event), separators=(",", ":")).encode() + b"\n" for event in events]
        if lines:
            with self._locked(), self.path.open("ab") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        return len(lines)

    def read(self) -> list[SpooledEvent]:
        """What is kept, oldest first. A last line that a crash cut short is left out.

        Raises:
            CorruptError: a line is not an event of this version; `set_aside` makes way for later ones.
        """
        if self.is_empty:
            return []
        lines = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        return [SpooledEvent(self._parse(line, number), line) for number, line in enumerate(lines, start=1)]

    def drop(self, sent: Sequence[SpooledEvent]) -> None:
        """Forget the first events, which were sent; nothing happens if somebody else was faster."""
        prefix = b"".join(each.line for each in sent)
        with self._locked():
            data = self.path.read_bytes() if self.path.exists() else b""
            if not data.startswith(prefix):
                return
            left = data[len(prefix) :]
            if not left:
                self.path.unlink(missing_ok=True)
                return
            fresh = self.path.with_suffix(".partial")
            fresh.write_bytes(left)
            fresh.replace(self.path)

    def set_aside(self) -> Path:
        """Move a spool that cannot be read out of the way; where it is now."""
        aside = self.path.with_suffix(".unreadable")
        with self._locked():
            self.path.replace(aside)
        return aside

    def _parse(self, line: bytes, number: int) -> Event:
        try:
            return event_from_json(json.loads(line))
        except ValueError as error:
            raise CorruptError(f"{self.path}, line {number} is not JSON: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            flock(lock, LOCK_EX)
            yield


def spools(folder: Path) -> list[Spool]:
    """Every spool in `folder` that holds something."""
    return [Spool(path) for path in sorted(folder.glob(f"*{SUFFIX}"))] if folder.is_dir() else []
