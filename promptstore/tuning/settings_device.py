"""The device that the settings ask for, held by this run alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptstore.lm.devices import gpu_holders, held_device
from promptstore.lm.gpus import find_gpus
from promptstore.settings import Settings
from promptstore.store.file_lock import Holder


@contextmanager
def settings_device(settings: Settings, what: str) -> Iterator[None]:
    """Holds a GPU while the block runs, if the settings ask for one and there is one. what: for those who wait.

    Raises:
        DeviceBusyError: others held all of them for longer than the settings allow to wait.
    """
    if settings.device == "cpu":
        yield
        return
    gpus = find_gpus(settings.gpus, os.environ)
    with held_device(settings.device, gpus, folder=_folder(settings), what=what, wait_s=settings.gpu_wait_s):
        yield


def settings_gpus(settings: Settings) -> dict[str, Holder | None]:
    """The GPUs that runs on this machine may hold, and who holds each now."""
    return gpu_holders(_folder(settings), find_gpus(settings.gpus, os.environ))


def _folder(settings: Settings) -> Path:
    return settings.state_dir / "devices"
