"""An engine without a model, and jobs for it: for tests of the scheduler."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from promptstore.runtime.job import Failed, Finished, Generated, GenerateJob, Scored, ScoreJob
from promptstore.runtime.sampling import ChosenToken, Sampling
from promptstore.runtime.scheduler import Scheduler, SchedulerLimits
from promptstore.testing.engine_rig import Answer

QUICK = SchedulerLimits(wait_s=0.0)


class StubEngine:
    """Answers without a model: scores are input lengths, answers are `max_tokens` times the token 1.

    gate: closed, it holds the engine inside a call, as a long batch would. takes_s: how long a batch or a
    step takes otherwise.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.is_inside = threading.Event()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.most_running = 0
        self.fault: Exception | None = None
        self.takes_s = 0.0
        self.started: list[int] = []
        self._running: list[tuple[GenerateJob, int]] = []

    is_padded = True

    @property
    def running(self) -> int:
        return len(self._running)

    def score(self, jobs: Sequence[ScoreJob]) -> None:
        self._enter()
        self.batches.append(len(jobs))
        for job in jobs:
            job.deliver(Scored((float(len(job.input_ids)),), len(jobs)))

    def start(self, jobs: Sequence[GenerateJob]) -> None:
        self._enter()
        self.started.append(len(jobs))
        self._running += [(job, job.sampling.max_tokens) for job in jobs]
        self.most_running = max(self.most_running, len(self._running))

    def step(self) -> None:
        if self._running:
            time.sleep(self.takes_s)
        self._running = [(job, left) for job, left in self._running if not job.is_cancelled]
        for job, _ in self._running:
            job.deliver(Generated(ChosenToken(1), "x"))
        for job, left in self._running:
            if left == 1:
                job.deliver(Finished("", "length"))
        self._running = [(job, left - 1) for job, left in self._running if left > 1]

    def abort(self, error: Exception) -> None:
        for job, _ in self._running:
            job.deliver(Failed(error))
        self._running = []

    def _enter(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.is_inside.set()
        self.gate.wait(timeout=10)
        time.sleep(self.takes_s)
        if self.fault is not None:
            raise self.fault


@contextmanager
def running_scheduler(*engines: StubEngine, limits: SchedulerLimits = QUICK) -> Iterator[Scheduler]:
    scheduler = Scheduler(engines, limits)
    scheduler.start()
    try:
        yield scheduler
    finally:
        for engine in engines:
            engine.gate.set()
        scheduler.close()


def score(length: int = 1) -> tuple[ScoreJob, Answer]:
    answer = Answer()
    return ScoreJob("0" * 64, [1] * length, (), answer.take), answer


def generate(max_tokens: int) -> tuple[GenerateJob, Answer]:
    answer = Answer()
    return GenerateJob("0" * 64, [1], Sampling(max_tokens), answer.take), answer


def wait_for_answers(condition: object, answers: Sequence[Answer]) -> None:
    deadline = time.monotonic() + 10
    while not all(answer.ends for answer in answers):
        assert time.monotonic() < deadline, condition
        time.sleep(0.001)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
