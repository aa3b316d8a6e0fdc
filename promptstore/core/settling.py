"""Work that one thread hands to another, and what comes back."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def settle(work: Callable[[], Any], future: Future[Any]) -> None:
    """Runs `work` and puts what it gives or raises into `future`, unless nobody waits for that any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the future
        future.set_exception(error)
