"""Folders in the cache that are there whole or not at all."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from promptstore.errors import StoreUnavailableError

UNFINISHED = ".unfinished-"
UNFINISHED_KEPT_S = 24 * 3600.0


@contextmanager
def folder_in_making(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled and given to `put_in_place`; what is left in it goes with the block.

    Raises:
        StoreUnavailableError: the disk is full or the cache folder cannot be written; nothing is left behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=UNFINISHED, ignore_cleanup_errors=True) as made:
            yield Path(made)
    except (OSError, SafetensorError) as error:
        raise StoreUnavailableError(
            f"the cache folder {folder.parent} cannot be written: {getattr(error, 'strerror', None) or error}; "
            "make room there, check its permissions, or name another folder in PROMPTSTORE_CACHE_DIR"
        ) from error


def put_in_place(made: Path, folder: Path, *, is_repair: bool = False) -> None:
    """Gives `made` its final name in one rename, unless another process was faster: then what it made stays.

    is_repair: what has the name already is damaged; put it aside first.
    """
    if is_repair and folder.exists():
        folder.rename(made.with_name("damaged"))
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _sweep(parent: Path) -> None:
    """Removes what killed processes left behind, long after any of them could still be at work."""
    for left in parent.glob(f"{UNFINISHED}*"):
        if time.time() - left.stat().st_mtime > UNFINISHED_KEPT_S:
            shutil.rmtree(left, ignore_errors=True)
