"""Threads for calls of the store, whose answers may take minutes to come or to fail: nobody's end waits for them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Condition, Thread
from typing import Any, ParamSpec, TypeVar

from promptstore.core.settling import settle

Result = TypeVar("Result")
Given = ParamSpec("Given")


class StoreThreads:
    """Does what is submitted, so many things at a time, in order. Every method is for any thread.

    Unlike those of a `ThreadPoolExecutor`, a process that ends does not wait for its threads; and there are none while
    there is nothing to do.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._changed = Condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._working = 0
        self._is_closed = False

    def submit(self, work: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Future[Result]:
        """What `work` will give; cancelled already if the threads are closed.

        Raises:
            RuntimeError: there is no thread for it, and none can be started now.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._is_closed:
                future.cancel()
                return future
            self._waiting.append((future, partial(work, *given, **named)))
            if self._working < self._count:
                self._begin()
        return future

    def close(self, *, within_s: float | None = None) -> bool:
        """Takes no more, cancels what was not begun and waits for what was. Returns whether that ended in time.

        within_s: None for however long it takes.
        """
        with self._changed:
            self._is_closed = True
            while self._waiting:
                self._waiting.popleft()[0].cancel()
            return self._changed.wait_for(lambda: not self._working, timeout=within_s)

    def _begin(self) -> None:
        """One more thread, for what came last; those that work get there too, only later."""
        try:
            Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            if not self._working:
                self._waiting.pop()
                raise
        else:
            self._working += 1

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._working -= 1
                    self._changed.notify_all()
                    return
                future, work = self._waiting.popleft()
            settle(work, future)
