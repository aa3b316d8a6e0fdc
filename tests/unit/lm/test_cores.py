"""Cores that threads deal out among themselves."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptstore.lm.cores import Cores

TASKS = Path("/proc/self/task")
HAS_GNU = (Path(torch.__file__).parent / "lib" / "libgomp.so.1").exists()


def in_a_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def threads_now() -> int:
    return len(list(TASKS.iterdir()))


def compute() -> None:
    """On as many cores as were taken: torch deals out what is larger than a cache."""
    torch.ones(1 << 20).add_(1)


@pytest.mark.skipif(sys.platform != "linux" or not HAS_GNU, reason="torch comes with another OpenMP here")
def test_a_thread_has_helpers_until_it_gives_its_cores_back_and_has_them_again() -> None:
    def work() -> None:
        cores = Cores(3)
        cores.take(3)
        before = threads_now()
        for _ in range(2):
            compute()
            assert threads_now() == before + 2
            cores.give_back()
            assert threads_now() == before

    in_a_thread(work)


def test_cores_are_those_of_the_thread_that_takes_them() -> None:
    def work() -> None:
        Cores(4).take(3)
        assert torch.get_num_threads() == 3
        Cores(4).give_back()
        assert torch.get_num_threads() == 3

    before = torch.get_num_threads()
    in_a_thread(work)
    assert torch.get_num_threads() == before
    assert Cores().count == before
