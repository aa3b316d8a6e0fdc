"""Threads that nobody's end waits for."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import pytest

from promptstore.store.store_threads import StoreThreads


def test_what_is_submitted_is_done_in_order_by_so_many_threads_at_a_time() -> None:
    threads, go = StoreThreads(2, "test"), Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        go.wait(10)
        return number

    futures = [threads.submit(work, number) for number in range(6)]
    alive = sum(thread.name == "test" for thread in threading.enumerate())
    go.set()
    assert [future.result(10) for future in futures] == list(range(6))
    assert (alive, sorted(begun[:2]), begun[2:4]) == (2, [0, 1], sorted(begun[2:4]))
    assert threads.close(within_s=10)


def test_what_fails_is_told_to_whoever_waits_and_the_next_is_done() -> None:
    threads = StoreThreads(1, "test")
    failing = threads.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(10)
    assert threads.submit(int, "7", base=8).result(10) == 7


def test_close_cancels_what_was_not_begun_and_waits_no_longer_than_it_is_told() -> None:
    threads, has_begun, go = StoreThreads(1, "test"), Event(), Event()

    def work() -> bool:
        has_begun.set()
        return go.wait(60)

    begun = threads.submit(work)
    waiting = threads.submit(int)
    assert has_begun.wait(10)
    assert not threads.close(within_s=0.05)
    assert waiting.cancelled()
    assert threads.submit(int).cancelled()
    go.set()
    assert threads.close(within_s=10)
    assert begun.result() is True


def test_a_thread_ends_when_there_is_nothing_to_do_and_another_begins() -> None:
    threads = StoreThreads(3, "test")
    for _ in range(2):
        worker = threads.submit(threading.current_thread).result(10)
        worker.join(10)
        assert not worker.is_alive()
    assert threads.close(within_s=10)


@contextmanager
def no_new_threads() -> Iterator[None]:
    """No machine has the address space for the stack that a thread is to have."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_thread_that_cannot_be_started_is_told_to_the_caller_and_takes_no_place() -> None:
    threads = StoreThreads(1, "test")
    with no_new_threads(), pytest.raises(RuntimeError, match="can't start new thread"):
        threads.submit(int, "1")
    assert threads.submit(int, "2").result(10) == 2
    assert threads.close(within_s=10)


def test_what_gets_no_thread_of_its_own_is_done_by_those_that_work() -> None:
    threads, go = StoreThreads(2, "test"), Event()
    first = threads.submit(go.wait, 60)
    with no_new_threads():
        second = threads.submit(int, "2")
    go.set()
    assert (first.result(10), second.result(10)) == (True, 2)
    assert threads.close(within_s=10)


@pytest.mark.parametrize(
    "program",
    [
        """
import time
from promptstore.store.store_threads import StoreThreads
StoreThreads(2, "test").submit(time.sleep, 600)
""",
        """
import time
from promptstore.store.parallel import in_parallel
from promptstore.store.store_threads import StoreThreads
StoreThreads(1, "test").submit(list, in_parallel(time.sleep, [600, 600]))
time.sleep(0.2)
""",
    ],
    ids=["one at a time", "many at a time"],
)
def test_a_process_ends_while_its_threads_wait(program: str) -> None:
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
