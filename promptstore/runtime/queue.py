"""Jobs that wait for the engine: first come first served, with others of like length where rows are padded."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from promptstore.runtime.job import Job

AnyJob = TypeVar("AnyJob", bound=Job)

# How many batches' worth of waiting jobs are looked through for like lengths.
WINDOW_BATCHES = 8


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """rows: inputs in one batch. tokens: input tokens in one batch, padding included; a longer single input passes."""

    rows: int = 32
    tokens: int = 4096


@dataclass(frozen=True, slots=True)
class Waiting(Generic[AnyJob]):
    """since: when the job came, by the scheduler's clock, in seconds."""

    job: AnyJob
    since: float


class JobQueue(Generic[AnyJob]):
    """Not thread-safe; the scheduler's lock guards it."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting[AnyJob]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: AnyJob, now: float) -> None:
        self._waiting.append(Waiting(job, now))

    def take_expired(self, before: float) -> list[AnyJob]:
        """Removes the jobs that came earlier than `before`."""
        expired = []
        while self._waiting and self._waiting[0].since < before:
            expired.append(self._waiting.popleft().job)
        return [job for job in expired if not job.is_cancelled]

    def drop_cancelled(self) -> None:
        """Forgets the jobs that nobody waits for; looks at every job."""
        self._waiting = deque(each for each in self._waiting if not each.job.is_cancelled)

    def take_batch(self, limits: BatchLimits, now: float = 0.0, *, is_padded: bool = True) -> Sequence[AnyJob]:
        """Removes a batch: the oldest jobs, or the oldest one, so that none starves, and those nearest to it in length.

        is_padded: whether rows of unlike lengths cost more than their tokens.
        now: by the clock of `add`; the jobs are told how long they waited.
        """
        window = self._take_window(WINDOW_BATCHES * limits.rows if is_padded else limits.rows)
        if not window:
            return ()
        lengths = [len(each.job.input_ids) for each in window]
        order = sorted(range(len(window)), key=lambda at: abs(lengths[at] - lengths[0]) if is_padded else at)
        taken: set[int] = set()
        longest = total = 0
        for at in order:
            longest, total = max(longest, lengths[at]), total + lengths[at]
            tokens = longest * (len(taken) + 1) if is_padded else total
            if taken and (len(taken) == limits.rows or tokens > limits.tokens):
                break
            taken.add(at)
        # What was looked at and left goes back in front, in the order it came.
        self._waiting.extendleft(reversed([each for at, each in enumerate(window) if at not in taken]))
        for at in taken:
            window[at].job.waited_s = max(0.0, now - window[at].since)
        return [window[at].job for at in sorted(taken)]

    def _take_window(self, size: int) -> list[Waiting[AnyJob]]:
        """Removes the oldest `size` jobs that somebody waits for, and the others on the way."""
        window: list[Waiting[AnyJob]] = []
        while self._waiting and len(window) < size:
            oldest = self._waiting.popleft()
            if not oldest.job.is_cancelled:
                window.append(oldest)
        return window

    def take_all(self) -> list[AnyJob]:
        jobs = [waiting.job for waiting in self._waiting]
        self._waiting.clear()
        return jobs
