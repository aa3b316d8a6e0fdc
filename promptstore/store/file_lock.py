"""A lock that lies in a file and ends with the process that holds it, however that process ends."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock. pid: 0 if it is not known; since: when it was taken, by the file's clock."""

    pid: int
    what: str
    since: datetime

    def __str__(self) -> str:
        return f"{self.what or 'somebody'} (process {self.pid or '?'}, since {self.since:%Y-%m-%d %H:%M:%S} UTC)"


class FileLock:
    """At most one holder at a time among all processes and threads that use the same file.

    The kernel keeps it (flock): a killed process gives it back at once, and there is no clock to be wrong. Child
    processes that inherit the open file hold it too, so it stays taken until the last of them is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def take(self, what: str) -> bool:
        """Take it, if nobody holds it, and write down for others what for."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "what": what}))
        file.flush()
        self._file = file
        return True

    def give_back(self) -> None:
        """Let others take it; nothing if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> Holder | None:
        """Who holds it now; `None` if nobody does. A taker that comes in this very moment may find it taken."""
        with suppress(FileNotFoundError), self._path.open(encoding="utf-8") as file:
            try:
                flock(file, LOCK_SH | LOCK_NB)
            except BlockingIOError:
                return _read(file)
        return None


def _read(file: TextIO) -> Holder:
    since = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
    try:
        said = json.load(file)
        return Holder(int(said["pid"]), str(said["what"]), since)
    except (ValueError, KeyError, TypeError):
        return Holder(0, "", since)  # it was taken a moment ago, and is about to be written
