"""Small local files that other processes read while we write them."""

import os
import stat
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, is_durable: bool = True, keeps_mode: bool = False) -> None:
    """Write, or replace whole: a reader, and a later start after a crash, sees the old bytes or the new, never a mix.

    is_durable: wait until the disk has them. Without it, a crash of the machine (not of the process) may leave an
    empty file: for what can be fetched or learnt again.

    keeps_mode: leave mode and owner as those of the file that is replaced. Without it, and for a new file, only the
    owner, who is the caller, may read.

    Raises:
        OSError: no room, no permission; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if keeps_mode and path.exists():
                _make_alike(file.fileno(), path.stat())
            file.write(data)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _make_alike(descriptor: int, found: os.stat_result) -> None:
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):
        os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
