"""An object store in a folder: a temporary file, fsync, then a hard link (create-only) or a rename (overwrite)."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from promptstore.errors import (
    CommitOutcomeUnknownError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from promptstore.objects.keys import check_key
from promptstore.store.objects import ObjectInfo

UNFINISHED = ".unfinished"
UNFINISHED_KEPT_S = 24 * 3600.0
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalObjectStore:
    """Objects as files of one folder, durable when a call returns, shared by any number of processes.

    The folder is made by the first write. It must lie on one file system with hard links: a link is what makes
    create-only atomic. A network file system keeps the contract as far as its own link and rename do.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._unfinished = self._folder / UNFINISHED

    @property
    def url(self) -> str:
        return self._folder.as_uri()

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._faults(f"read {path}"):
            try:
                return path.read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise NotFoundError(f"{self.url}/{key} does not exist") from error

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._faults(f"write {path}"), self._written(path, data) as unfinished:
            unfinished.replace(path)
            _sync_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._faults(f"create {path}"), self._written(path, data) as unfinished:
            try:
                os.link(unfinished, path)
            except FileExistsError:
                if path.is_dir():
                    raise InvalidInputError(f"{path} is a folder; another key lies below it") from None
                return False
            except OSError as error:
                if error.errno in _NO_HARD_LINKS:
                    raise self._no_hard_links(error) from error
                raise
            try:
                _sync_folder(path.parent)
            except OSError as error:
                raise CommitOutcomeUnknownError(f"{path} was created, but may not survive a crash: {error}") from error
            return True

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        with self._faults(f"list {self._folder}"):
            yield from _walk(self._folder, "", prefix.encode(), start_after.encode())

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._faults(f"delete {path}"), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[Path]:
        """A durable temporary file holding `data`, on the file system of `path`, gone at the end; makes the folders."""
        if not self._unfinished.is_dir():
            _make_folder(self._unfinished)
        self._sweep()
        _make_folder(path.parent)
        unfinished = self._unfinished / uuid4().hex
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield unfinished
        finally:
            unfinished.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed writers left behind, long after any of them could still be at work."""
        oldest = time.time() - UNFINISHED_KEPT_S
        for entry in os.scandir(self._unfinished):
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest:
                    Path(entry).unlink()

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidInputError(f"cannot {doing}: one key lies below another ({error})") from error
        except OSError as error:
            raise StoreUnavailableError(f"cannot {doing}: {error.strerror}; {_next_step(error)}") from error

    def _no_hard_links(self, error: OSError) -> UnsupportedStoreError:
        return UnsupportedStoreError(
            f"{self._folder} lies on a file system without hard links ({error.strerror}), so two writers could both "
            "create one commit; use a folder on ext4, xfs, btrfs, zfs, apfs or tmpfs, or an s3:// store"
        )


def _next_step(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free some space (nothing was written), then repeat"
        case errno.EROFS:
            return "the file system is mounted read-only; mount it writable or use another store"
        case errno.EACCES | errno.EPERM:
            return "give this user permission on the folder, or use another store"
        case _:
            return "check the disk, then repeat"


def _make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: Path, base: str, prefix: bytes, start_after: bytes) -> Iterator[ObjectInfo]:
    """The objects below `folder`, whose keys start with `base`, by key bytes; skips what cannot match unread."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except FileNotFoundError:
        return
    keys = {entry: base + entry.name + ("/" if entry.is_dir() else "") for entry in entries}
    for entry, key in sorted(keys.items(), key=lambda item: item[1].encode()):
        name = key.encode()
        if key.endswith("/"):
            if _may_hold(name, prefix) and (name > start_after or start_after.startswith(name)):
                yield from _walk(Path(entry), key, prefix, start_after)
        elif name.startswith(prefix) and name > start_after:
            with suppress(FileNotFoundError):
                stat = entry.stat()
                yield ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def _may_hold(folder: bytes, prefix: bytes) -> bool:
    return folder.startswith(prefix) or prefix.startswith(folder)
