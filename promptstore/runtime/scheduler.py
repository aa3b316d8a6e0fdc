"""A bounded queue in front of one engine or several, and batches out of it: a thread for each engine."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

from promptstore.errors import NotServingError, OverloadedError
from promptstore.runtime.job import Failed, GenerateJob, Job, ScoreJob
from promptstore.runtime.queue import AnyJob, BatchLimits, JobQueue
from promptstore.runtime.settling import settle

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class JobEngine(Protocol):
    """What the scheduler drives; `promptstore.runtime.engine.Engine` is the real one."""

    @property
    def is_padded(self) -> bool: ...
    @property
    def running(self) -> int: ...
    def score(self, jobs: Sequence[ScoreJob]) -> None: ...
    def start(self, jobs: Sequence[GenerateJob]) -> None: ...
    def step(self) -> None: ...
    def abort(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """queued: jobs that may wait; more are refused at once, so that waiting stays bounded under any load.

    running: answers generated side by side, by all engines. wait_s: how long an idle engine waits for a batch to fill.
    queue_timeout_s: a job that waited longer is refused instead of answered too late.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    queued: int = 512
    running: int = 32
    wait_s: float = 0.002
    queue_timeout_s: float = 30.0


class Scheduler:
    """Gives jobs to engines in batches, each engine on a thread of its own. Every method is for any thread.

    engines: alike; what waits is dealt out among those that are free. begin_thread: what each thread does first.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        engines: Sequence[JobEngine],
        limits: SchedulerLimits | None = None,
        *,
        begin_thread: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines = engines
        self._begin_thread = begin_thread
        self._limits = limits or SchedulerLimits()
        self._clock = clock
        self._changed = Condition()
        self._scores: JobQueue[ScoreJob] = JobQueue()
        self._starts: JobQueue[GenerateJob] = JobQueue()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy = 0
        self._is_accepting = True
        self._is_closing = False
        self._threads = [
            Thread(target=self._serve, args=(engine,), name=f"engine-{number}", daemon=True)
            for number, engine in enumerate(engines)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return len(self._scores) + len(self._starts)

    @property
    def running(self) -> int:
        """Answers being generated."""
        return sum(engine.running for engine in self._engines)

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    @property
    def problem(self) -> str | None:
        return None if self.is_alive else "the engine's thread has ended"

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues all of `jobs` or none.

        Raises:
            OverloadedError: they do not fit into the queue.
            NotServingError: the scheduler is draining.
        """
        with self._changed:
            self._require_room(len(jobs))
            now = self._clock()
            for job in jobs:
                if isinstance(job, ScoreJob):
                    self._scores.add(job, now)
                else:
                    self._starts.add(job, now)
            self._changed.notify_all()

    def check(self, count: int) -> None:
        """Raises what `submit` would, if `count` jobs came now."""
        with self._changed:
            self._require_room(count)

    def _require_room(self, count: int) -> None:
        if not self._is_accepting:
            raise NotServingError("this server is shutting down; repeat the request, another one will answer")
        if self.queued + count > self._limits.queued:
            self._scores.drop_cancelled()
            self._starts.drop_cancelled()
        if self.queued + count > self._limits.queued:
            raise OverloadedError(
                f"{self.queued} inputs wait already and at most {self._limits.queued} may; "
                f"repeat the request in a moment, {count} more are too many now"
            )

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Runs `work` on an engine's thread, between batches: to prepare a prompt, say."""
        future: Future[Result] = Future()
        with self._changed:
            if self._is_closing:
                future.set_exception(NotServingError("this server is shutting down"))
                return future
            self._calls.append((work, future))
            self._changed.notify_all()
        return future

    def drain(self, timeout_s: float) -> bool:
        """Takes no more jobs and waits until all are answered. Returns whether they were, within the time."""
        with self._changed:
            self._is_accepting = False
            return self._changed.wait_for(lambda: not (self._has_work or self._busy), timeout=timeout_s)

    def close(self) -> None:
        """Stops each thread after the batch in hand; whatever still waits is told that the server is going."""
        with self._changed:
            self._is_accepting = False
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        gone = NotServingError("the server shut down before it answered")
        for engine in self._engines:
            engine.abort(gone)
        waiting: list[Job] = [*self._scores.take_all(), *self._starts.take_all()]
        for job in waiting:
            job.deliver(Failed(gone))
        while self._calls:
            self._calls.popleft()[1].set_exception(gone)

    @property
    def _has_work(self) -> bool:
        return bool(self.queued or self._calls or self.running)

    def _serve(self, engine: JobEngine) -> None:
        self._begin_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.queued or self._calls or engine.running or self._is_closing)
                if self._is_closing:
                    return
                self._fill(engine)
                call = self._calls.popleft() if self._calls else None
                late = self._take_late(self._clock())
                free = len(self._engines) - self._busy
                # What waits is left to another engine while this one is busy with a call.
                share = 0 if call is not None and free > 1 else 1 / free
                scores = self._take(self._scores, share, self._limits.batch.rows, engine)
                starts = self._take(self._starts, share, self._room(engine), engine)
                self._busy += 1
            for job in late:
                job.deliver(Failed(OverloadedError("the input waited too long; repeat the request in a moment")))
            self._run(engine, call, scores, starts)
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _fill(self, engine: JobEngine) -> None:
        """Lets a batch fill for a moment when the engine is idle; the lock is free meanwhile."""
        if engine.running or self._calls or self._limits.wait_s <= 0:
            return
        self._changed.wait_for(
            lambda: self.queued >= self._limits.batch.rows or self._is_closing, timeout=self._limits.wait_s
        )

    def _room(self, engine: JobEngine) -> int:
        """How many more answers an engine may generate."""
        return -(-self._limits.running // len(self._engines)) - engine.running

    def _take(self, queue: JobQueue[AnyJob], share: float, rows: int, engine: JobEngine) -> Sequence[AnyJob]:
        """A batch of at most a share of what waits."""
        limits = BatchLimits(min(rows, self._limits.batch.rows, ceil(share * len(queue))), self._limits.batch.tokens)
        return queue.take_batch(limits, self._clock(), is_padded=engine.is_padded)

    def _take_late(self, now: float) -> list[Job]:
        before = now - self._limits.queue_timeout_s
        return [*self._scores.take_expired(before), *self._starts.take_expired(before)]

    @staticmethod
    def _run(
        engine: JobEngine,
        call: tuple[Callable[[], Any], Future[Any]] | None,
        scores: Sequence[ScoreJob],
        starts: Sequence[GenerateJob],
    ) -> None:
        if call is not None:
            settle(*call)
        try:
            if scores:
                engine.score(scores)
            if starts:
                engine.start(starts)
            engine.step()
        except Exception as error:
            logger.exception("the engine failed outside of any job")
            taken: list[Job] = [*scores, *starts]
            for job in taken:
                job.deliver(Failed(error))
