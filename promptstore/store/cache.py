"""Pulled bytes on local disk, by digest, within a bound. Many processes may share one folder."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from promptstore.core.digest import sha256_hex
from promptstore.store.files import write_atomically

_SCANS_PER_BOUND = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    used_at_ns: int
    file_bytes: int
    path: Path


class PromptCache:
    """Keeps what was used last. A cache that cannot be read or written is an empty one: it never fails a pull.

    max_bytes: of all entries. Each process looks at the whole folder only once per sixteenth of it written, so the
    bound may be overrun by that much per process for a moment.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._unaccounted_bytes = max_bytes

    def get(self, digest: str) -> bytes | None:
        """The bytes with that digest; `None` if they are not here, or are damaged (they are dropped then)."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
            if sha256_hex(data) != digest:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Keep `data`, whose digest the caller has checked; silently not, where the disk has no room for it."""
        if len(data) > self._max_bytes:
            return
        try:
            write_atomically(self._path(digest), data, is_durable=False)
            with self._lock:
                self._unaccounted_bytes += len(data)
                if self._unaccounted_bytes < self._max_bytes // _SCANS_PER_BOUND:
                    return
                self._unaccounted_bytes = 0
            self._evict()
        except OSError:
            return

    def _evict(self) -> None:
        """Delete what was used longest ago until the rest fits; other processes may be doing the same."""
        entries = sorted(self._entries(), key=lambda entry: entry.used_at_ns)
        excess = sum(entry.file_bytes for entry in entries) - self._max_bytes
        for entry in entries:
            if excess <= 0:
                return
            entry.path.unlink(missing_ok=True)
            excess -= entry.file_bytes

    def _entries(self) -> list[_Entry]:
        found = []
        for path in self._folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append(_Entry(status.st_mtime_ns, status.st_size, path))
        return found

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest
