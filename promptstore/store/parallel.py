"""Many independent calls of an object store at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

from promptstore.store.store_threads import StoreThreads

Item = TypeVar("Item")
Result = TypeVar("Result")
WIDTH = 16


def in_parallel(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(call, items)`, up to 16 at a time, results in order; holds no more than those 16 at once.

    Its end waits for the calls that run. The process's end does not: a server need not wait for a store that hangs.
    """
    waiting = iter(items)
    threads = StoreThreads(WIDTH, "store")
    try:
        running: list[Future[Result]] = [threads.submit(call, item) for item in islice(waiting, WIDTH)]
        while running:
            result = running.pop(0).result()
            running.extend(threads.submit(call, item) for item in islice(waiting, 1))
            yield result
    finally:
        threads.close()
