"""Many independent calls of an object store at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WIDTH = 16


def in_parallel(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(call, items)`, up to 16 at a time, results in order; holds no more than those 16 at once."""
    waiting = iter(items)
    with ThreadPoolExecutor(WIDTH) as pool:
        running: list[Future[Result]] = [pool.submit(call, item) for item in islice(waiting, WIDTH)]
        while running:
            result = running.pop(0).result()
            running.extend(pool.submit(call, item) for item in islice(waiting, 1))
            yield result
