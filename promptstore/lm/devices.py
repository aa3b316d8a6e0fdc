"""GPUs held by one run at a time. Imports no torch: CUDA fixes what it sees when it starts."""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptstore.errors import DeviceBusyError, InvalidInputError
from promptstore.lm.gpus import VISIBLE
from promptstore.store.file_lock import FileLock, Holder

log = logging.getLogger(__name__)

POLL_S = 1.0


def gpu_lock(folder: Path, name: str) -> FileLock:
    """The lock of a GPU. folder: shared by all processes that could use the same GPU."""
    return FileLock(folder / f"{name.replace('/', '_')}.lock")


def gpu_holders(folder: Path, gpus: Sequence[str]) -> dict[str, Holder | None]:
    """Who holds each of `gpus` now."""
    return {name: gpu_lock(folder, name).holder() for name in gpus}


@contextmanager
def held_device(
    device: str,
    gpus: Sequence[str],
    *,
    folder: Path,
    what: str,
    wait_s: float,
    environment: MutableMapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[str, ...]]:
    """Holds what `device` asks for while the block runs, and tells CUDA by CUDA_VISIBLE_DEVICES; yields what is held.

    `auto` and `cuda` hold any one of `gpus`, `cuda:1` the second of them, `balanced` all; `cpu`, and a machine without
    GPUs, hold nothing and wait for nobody. Enter before CUDA is started in this process. CUDA_VISIBLE_DEVICES stays as
    it is set when the block ends, because CUDA cannot change to another GPU: a later hold of the same process waits for
    the same one. Drop the model before the block ends, and its memory is given back too.

    what: for those who wait. gpus: as `find_gpus` names them. wait_s: how long to wait.

    Raises:
        DeviceBusyError: others held it all the time; the message names them.
        InvalidInputError: there is no such GPU.
    """
    wanted, count = _wanted(device, gpus)
    if not count:
        yield ()
        return
    held: dict[str, FileLock] = {}
    try:
        _wait(held, _Wish(folder, what, wanted, count), wait_s, clock, sleep)
        environment[VISIBLE] = ",".join(gpus if device.startswith("cuda:") else held)
        log.info("%s holds %s", what, ", ".join(held))
        yield tuple(held)
    finally:
        _free_memory()
        for lock in held.values():
            lock.give_back()


@dataclass(frozen=True, slots=True)
class _Wish:
    folder: Path
    what: str
    gpus: Sequence[str]
    count: int


def _wanted(device: str, gpus: Sequence[str]) -> tuple[Sequence[str], int]:
    """The GPUs to choose from, and how many of them are to be held."""
    kind, _, index = device.partition(":")
    if not gpus or kind not in {"auto", "cuda", "balanced"}:
        return (), 0
    if index:
        if not index.isdecimal() or int(index) >= len(gpus):
            raise InvalidInputError(f"device {device}: runs on this machine have {len(gpus)} GPU(s): {', '.join(gpus)}")
        return (gpus[int(index)],), 1
    return gpus, len(gpus) if kind == "balanced" else 1


def _wait(
    held: dict[str, FileLock],
    wish: _Wish,
    wait_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Adds to `held` until the wish is granted. Who needs several keeps the first ones while it waits."""
    deadline, told = clock() + wait_s, ""
    while not _is_granted(held, wish):
        holders = gpu_holders(wish.folder, [name for name in wish.gpus if name not in held])
        said = "; ".join(f"{name} is held by {holder or 'nobody now'}" for name, holder in holders.items())
        if clock() >= deadline:
            raise DeviceBusyError(
                f"{wish.what} waited {wait_s:g} s for a GPU: {said}; stop one of them, or set PROMPTSTORE_GPU_WAIT_S "
                "higher"
            )
        if said != told:
            log.warning("%s waits for a GPU: %s", wish.what, said)
            told = said
        sleep(max(0.0, min(POLL_S, deadline - clock())))


def _is_granted(held: dict[str, FileLock], wish: _Wish) -> bool:
    """Takes what is free. Of several, never a later one before an earlier one: two of us would wait for each other."""
    for name in wish.gpus if wish.count == 1 else sorted(set(wish.gpus) - set(held)):
        lock = gpu_lock(wish.folder, name)
        if lock.take(wish.what):
            held[name] = lock
        elif wish.count > 1:
            return False
        if len(held) == wish.count:
            return True
    return False


def _free_memory() -> None:
    """What CUDA's allocator keeps for this process would be missing to the next."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
