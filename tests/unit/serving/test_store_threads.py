"""Threads that nobody's end waits for."""

import subprocess
import sys
import threading
from concurrent.futures import wait
from threading import Event

import pytest

from promptstore.serving.store_threads import StoreThreads


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
    threads, go = StoreThreads(1, "test"), Event()
    begun = threads.submit(go.wait, 60)
    waiting = threads.submit(int)
    assert not threads.close(within_s=0.05)
    assert waiting.cancelled()
    assert threads.submit(int).cancelled()
    go.set()
    assert threads.close(within_s=10)
    assert begun.result() is True


def test_a_thread_ends_when_there_is_nothing_to_do_and_another_begins() -> None:
    threads = StoreThreads(3, "test")
    first = threads.submit(threading.get_ident)
    wait([first])
    assert threads.close(within_s=10)
    assert not any(thread.name == "test" for thread in threading.enumerate())


def test_a_process_ends_while_its_threads_wait() -> None:
    program = """
import time
from promptstore.serving.store_threads import StoreThreads
StoreThreads(2, "test").submit(time.sleep, 600)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
