"""Versions on trial as this replica sees them: who gets them, how they do, and when they are given up."""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from promptstore.core.state import PromptVersion
from promptstore.errors import InvalidInputError, NotFoundError, NotServingError, OverloadedError, PromptStoreError
from promptstore.serving.metrics import ServerMetrics
from promptstore.store.rollout import Rollout

logger = logging.getLogger(__name__)
# What says nothing about the version that was asked.
_NOT_ITS_FAULT = (OverloadedError, NotServingError, InvalidInputError)


@dataclass(slots=True)
class Tally:
    """What one version's answers were like."""

    answers: int = 0
    failures: int = 0
    seconds: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.seconds / self.answers if self.answers else 0.0


@dataclass(slots=True, eq=False)
class Trial:
    """One rollout and how it goes here. Any thread may note; `is_over`: given up here, whatever the store says."""

    rollout: Rollout
    version: PromptVersion
    in_place: Tally = field(default_factory=Tally)
    on_trial: Tally = field(default_factory=Tally)
    compared: int = 0
    agreed: int = 0
    is_over: bool = False
    _lock: Lock = field(default_factory=Lock)

    def takes(self, key: str) -> bool:
        """Whether a caller's requests go to the version on trial: always the same for one key and rollout."""
        if self.is_over or self.rollout.mode != "share":
            return False
        text = f"{self.rollout.task}@{self.rollout.alias} {self.rollout.commit} {key}"
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        return point < self.rollout.share

    def note(self, *, is_on_trial: bool, seconds: float = 0.0, error: BaseException | None = None) -> None:
        if isinstance(error, _NOT_ITS_FAULT):
            return
        with self._lock:
            tally = self.on_trial if is_on_trial else self.in_place
            tally.answers += error is None
            tally.failures += error is not None
            tally.seconds += seconds

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
        if is_comparable and tally.mean_s > bounds.max_latency_ratio * self.in_place.mean_s:
            ratio = tally.mean_s / self.in_place.mean_s
            return f"answers take {ratio:.2f} times as long, bound {bounds.max_latency_ratio:g}"
        agreement = self.agreed / self.compared if self.compared else 1.0
        if bounds.min_agreement is not None and agreement < bounds.min_agreement:
            return f"answers agree in {agreement:.1%}, bound {bounds.min_agreement:.1%}"
        return ""


class TrialJudge:
    """Gives a trial up when it breaks its bounds: here at once, and in the store for every replica.

    abort: writes to the store; it may fail, if the server may only read: then other replicas judge for themselves.
    """

    def __init__(self, abort: Callable[[Rollout, str], object], metrics: ServerMetrics) -> None:
        self._abort = abort
        self._metrics = metrics
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="abort")

    def judge(self, trial: Trial) -> None:
        why = "" if trial.is_over else trial.breach()
        if not why:
            return
        trial.is_over = True
        rollout = trial.rollout
        self._metrics.given_up.labels(rollout.task, rollout.alias, str(rollout.number)).inc()
        logger.error("%s on trial for %s is given up: %s", trial.version, rollout.alias, why)
        self._writing.submit(self._write, rollout, why)

    def close(self) -> None:
        self._writing.shutdown(wait=True)

    def _write(self, rollout: Rollout, why: str) -> None:
        try:
            self._abort(rollout, why)
        except NotFoundError:
            return
        except PromptStoreError as error:
            logger.warning("the rollout of %s:%d stays in the store: %s", rollout.task, rollout.number, error)
