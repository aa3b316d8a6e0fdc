"""Jobs answered by a vLLM server: the loop that asks it, watches it, and refuses while it is away."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Condition, Event, Thread
from typing import TypeVar

from promptstore.core.settling import settle
from promptstore.errors import IncompatibleModelError, NotServingError, OverloadedError, PromptStoreError
from promptstore.runtime.job import Failed, Job, ScoreJob
from promptstore.runtime.vllm.asking import Asking
from promptstore.runtime.vllm.identity import ModelCheck
from promptstore.runtime.vllm.server import ServedModel, VllmServer

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
_FIRST_LOOK_S = 15.0


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """queued: jobs that may wait here; more are refused at once. sent: jobs at vLLM at one time, which queues as well.

    queue_timeout_s: a job that waited longer is refused instead of answered too late.
    watch_s: how often vLLM is asked whether it is well and still serves the same model, and jobs whether they are
    cancelled.
    """

    queued: int = 512
    sent: int = 64
    queue_timeout_s: float = 30.0
    watch_s: float = 1.0


class VllmAnswerer:
    """An `Answerer` whose model runs elsewhere. Its thread prepares prompts and waits for vLLM.

    While vLLM is away or serves another model, jobs are refused at once and `problem` says why.
    """

    def __init__(
        self,
        server: VllmServer,
        check: ModelCheck,
        asking: Asking,
        limits: VllmLimits | None = None,
    ) -> None:
        self._server = server
        self._check = check
        self._asking = asking
        self._limits = limits or VllmLimits()
        self._changed = Condition()
        self._pending = 0
        self._waiting: set[Job] = set()
        self._sent = 0
        self._is_accepting = True
        self._problem: str | None = f"vLLM at {server.url} was not asked yet; repeat the request in a moment"
        self._mismatch: IncompatibleModelError | None = None
        self._served: ServedModel | None = None
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._has_looked = Event()
        self._loop = asyncio.new_event_loop()
        self._room = asyncio.Semaphore(self._limits.sent)
        self._is_doubtful = asyncio.Event()
        self._thread = Thread(target=self._run, name="vllm", daemon=True)

    def start(self) -> None:
        """Looks at vLLM once. One that is away is waited for in the background.

        Raises:
            IncompatibleModelError: it is there and serves another model, or takes no prompt embeddings.
        """
        self._thread.start()
        self._has_looked.wait(_FIRST_LOOK_S)
        if self._mismatch is not None:
            self.close()
            raise self._mismatch

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that vLLM has."""
        return self._sent

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def problem(self) -> str | None:
        return self._problem if self.is_alive else "the thread that asks vLLM has ended"

    def submit(self, jobs: Sequence[Job]) -> None:
        with self._changed:
            self._require_room(len(jobs))
            self._pending += len(jobs)
            self._waiting.update(jobs)
            self._loop.call_soon_threadsafe(self._begin, list(jobs))

    def check(self, count: int) -> None:
        with self._changed:
            self._require_room(count)

    def _require_room(self, count: int) -> None:
        if not self._is_accepting:
            raise NotServingError("this server is shutting down; repeat the request, another one will answer")
        if (problem := self.problem) is not None:
            raise NotServingError(problem)
        if self.queued + count > self._limits.queued:
            self._waiting = {job for job in self._waiting if not job.is_cancelled}
        if self.queued + count > self._limits.queued:
            raise OverloadedError(
                f"{self.queued} inputs wait already and at most {self._limits.queued} may; "
                f"repeat the request in a moment, {count} more are too many now"
            )

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        with self._changed:
            if not self._is_accepting:
                future.set_exception(NotServingError("this server is shutting down"))
            else:
                self._loop.call_soon_threadsafe(settle, work, future)
        return future

    def drain(self, timeout_s: float) -> bool:
        with self._changed:
            self._is_accepting = False
            return self._changed.wait_for(lambda: self._pending == 0, timeout=timeout_s)

    def close(self) -> None:
        with self._changed:
            self._is_accepting = False
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        try:
            watching = [self._loop.create_task(work()) for work in (self._watch, self._give_up)]
            self._loop.run_forever()
            tasks = [*watching, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._server.close())
        finally:
            self._loop.close()

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:
                logger.exception("looking after vLLM failed")
                self._problem = f"the gateway cannot judge vLLM at {self._server.url}: {error}"
            self._has_looked.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_doubtful.wait(), self._limits.watch_s)
            self._is_doubtful.clear()

    async def _look(self) -> None:
        """Proves the model anew whenever vLLM was away: it may have come back with another."""
        try:
            models = await self._server.models()
            if self._served is None or self._served not in models:
                self._served = None
                self._served = await self._check.find(self._server, models)
        except PromptStoreError as error:
            self._served = None
            self._mismatch = error if isinstance(error, IncompatibleModelError) else None
            self._note(str(error))
        else:
            self._note(None)

    def _note(self, problem: str | None) -> None:
        if problem != self._problem:
            logger.log(logging.INFO if problem is None else logging.WARNING, "%s", problem or "vLLM answers")
        self._problem = problem

    async def _give_up(self) -> None:
        """Ends what nobody waits for any more, here or at vLLM."""
        while True:
            await asyncio.sleep(self._limits.watch_s)
            for job, task in self._tasks.items():
                if job.is_cancelled:
                    task.cancel()

    def _begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            task = self._tasks[job] = self._loop.create_task(self._answer(job))
            task.add_done_callback(partial(self._end, job))

    def _end(self, job: Job, task: asyncio.Task[None]) -> None:
        if task.cancelled() and not job.is_cancelled:
            job.deliver(Failed(NotServingError("the server shut down before it answered")))
        del self._tasks[job]
        with self._changed:
            self._pending -= 1
            self._waiting.discard(job)
            self._changed.notify_all()

    async def _answer(self, job: Job) -> None:
        """Delivers every event of `job`, a failure included."""
        try:
            async with self._place(job):
                await self._ask(job)
        except Exception as error:  # noqa: BLE001 - the boundary between one job and the server
            if isinstance(error, NotServingError):
                self._is_doubtful.set()
            job.deliver(Failed(error))

    @contextlib.asynccontextmanager
    async def _place(self, job: Job) -> AsyncIterator[None]:
        """One of the places at vLLM, in turn. Raises OverloadedError if none gets free in time."""
        since = self._loop.time()
        try:
            async with asyncio.timeout(self._limits.queue_timeout_s):
                await self._room.acquire()
        except TimeoutError:
            raise OverloadedError("the input waited too long; repeat the request in a moment") from None
        job.waited_s = self._loop.time() - since
        with self._changed:
            self._waiting.discard(job)
        self._sent += 1
        try:
            yield
        finally:
            self._sent -= 1
            self._room.release()

    async def _ask(self, job: Job) -> None:
        if job.is_cancelled:
            return
        if (served := self._served) is None:
            raise NotServingError(self._problem or "vLLM went away; repeat the request in a moment")
        if isinstance(job, ScoreJob):
            await self._asking.score(job, served)
        else:
            await self._asking.generate(job, served)
