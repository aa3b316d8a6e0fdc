"""Versions on trial as this replica sees them: who gets them, how they do, and when they are given up."""

import hashlib
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

from promptstore.core.state import PromptVersion
from promptstore.errors import InvalidInputError, NotFoundError, NotServingError, OverloadedError, PromptStoreError
from promptstore.serving.metrics import ServerMetrics
from promptstore.store.rollout import Rollout
from promptstore.store.store_threads import StoreThreads

logger = logging.getLogger(__name__)
# How long the end waits for an abort that is being written: other replicas judge for themselves.
WRITTEN_WITHIN_S = 5.0
# What says nothing about the version that was asked.
_NOT_ITS_FAULT = (OverloadedError, NotServingError, InvalidInputError)
# Times are counted by size, in steps of a doubling, so that any number of them takes the same memory.
_STEPS = 32
_DOUBLINGS = 20
_SHORTEST_S = 0.001


@dataclass(slots=True)
class Tally:
    """What one version's answers were like."""

    answers: int = 0
    failures: int = 0
    _times: list[int] = field(default_factory=lambda: [0] * (_DOUBLINGS * _STEPS), repr=False)

    def answer(self, seconds: float) -> None:
        step = math.floor(math.log2(max(1.0, seconds / _SHORTEST_S)) * _STEPS)
        self._times[min(step, len(self._times) - 1)] += 1
        self.answers += 1

    @property
    def median_s(self) -> float:
        """To 2 %. Unlike a mean, a few answers that took minutes say nothing about it."""
        passed = accumulate(self._times)
        step = next((at for at, count in enumerate(passed) if 2 * count > self.answers), None)
        return 0.0 if step is None else _SHORTEST_S * 2 ** ((step + 0.5) / _STEPS)


@dataclass(slots=True, eq=False)
class Trial:
    """One rollout and how it goes here. Any thread may note. given_up: why it is over here, whatever the store says."""

    rollout: Rollout
    version: PromptVersion
    in_place: Tally = field(default_factory=Tally)
    on_trial: Tally = field(default_factory=Tally)
    compared: int = 0
    agreed: int = 0
    given_up: str = ""
    _lock: Lock = field(default_factory=Lock)

    @property
    def is_over(self) -> bool:
        return bool(self.given_up)

    def takes(self, key: str) -> bool:
        """Whether a caller's requests go to the version on trial: always alike, and a larger share only adds keys."""
        if self.is_over or self.rollout.mode != "share":
            return False
        text = f"{self.rollout.task}@{self.rollout.alias} {self.rollout.number} {key}"
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        return point < self.rollout.share

    def note(self, *, is_on_trial: bool, seconds: float = 0.0, error: BaseException | None = None) -> None:
        if isinstance(error, _NOT_ITS_FAULT):
            return
        with self._lock:
            tally = self.on_trial if is_on_trial else self.in_place
            if error is None:
                tally.answer(seconds)
            else:
                tally.failures += 1

    def refuse(self) -> None:
        """Notes an input that the version on trial does not take, and the one in place does."""
        with self._lock:
            self.on_trial.failures += 1

    def compare(self, in_place: str, on_trial: str) -> None:
        """Notes one input's answer, a label or a text, under both versions."""
        with self._lock:
            self.compared += 1
            self.agreed += in_place == on_trial

    def breach(self) -> str:
        """Which bound is broken, for people; empty if none is, or if it is too early to say."""
        bounds, tally = self.rollout.bounds, self.on_trial
        asked = tally.answers + tally.failures
        if asked < bounds.min_answers:
            return ""
        if tally.failures > bounds.max_error_rate * asked:
            return f"{tally.failures} of {asked} answers failed, bound {bounds.max_error_rate:.2%}"
        is_comparable = self.in_place.answers >= bounds.min_answers and tally.answers > 0
        if is_comparable and (ratio := tally.median_s / self.in_place.median_s) > bounds.max_latency_ratio:
            return f"answers take {ratio:.1f} times as long, bound {bounds.max_latency_ratio:g}"
        # Under a share comparing is left out while the queue is busy.
        agreement = self.agreed / self.compared if self.compared >= bounds.min_answers else 1.0
        if bounds.min_agreement is not None and agreement < bounds.min_agreement:
            return f"answers agree in {agreement:.1%}, bound {bounds.min_agreement:.1%}"
        return ""


class TrialJudge:
    """Gives a trial up when it breaks its bounds: here at once, and in the store for every replica.

    abort: writes to the store; it may fail, if the server may only read: then other replicas judge for themselves.
    written_within_s: how long `close` waits for it.
    """

    def __init__(
        self,
        abort: Callable[[Rollout, str], object],
        metrics: ServerMetrics,
        *,
        written_within_s: float = WRITTEN_WITHIN_S,
    ) -> None:
        self._abort = abort
        self._written_within_s = written_within_s
        self._metrics = metrics
        self._writing = StoreThreads(1, "abort")
        self._unwritten: dict[Rollout, Future[None]] = {}

    def judge(self, trial: Trial) -> None:
        why = "" if trial.is_over else trial.breach()
        if not why:
            return
        trial.given_up = why
        rollout = trial.rollout
        self._metrics.given_up.labels(rollout.task, rollout.alias, str(rollout.number)).inc()
        logger.error("%s on trial for %s is given up: %s", trial.version, rollout.alias, why)
        self.insist(trial)

    def insist(self, trial: Trial) -> None:
        """Writes again what the store has not taken: to be called as long as it has a trial going on that is over here.

        Otherwise other replicas, and this one after a restart, would go on with it.
        """
        before = self._unwritten.get(trial.rollout)
        if trial.is_over and (before is None or before.done()):
            is_first = before is None
            self._unwritten[trial.rollout] = self._writing.submit(self._write, trial, is_first=is_first)

    def close(self) -> None:
        wait(list(self._unwritten.values()), timeout=self._written_within_s)
        self._writing.close(within_s=0)

    def _write(self, trial: Trial, *, is_first: bool) -> None:
        try:
            self._abort(trial.rollout, trial.given_up)
        except NotFoundError:
            return
        except PromptStoreError as error:
            if is_first:
                logger.warning("the rollout of %s goes on in the store, to be tried again: %s", trial.version, error)
