"""Asks a version on trial on the side: the answer goes to nobody, only whether its label is the same."""

import logging
import time

from promptstore.errors import NotServingError, OverloadedError, PromptStoreError
from promptstore.runtime.answerer import Answerer
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.job import Event, Failed, Scored, ScoreJob
from promptstore.serving.loaded import Input, LoadedPrompt
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.table import Target
from promptstore.serving.trials import Trial, TrialJudge

logger = logging.getLogger(__name__)


class Shadow:
    """Scores classification inputs again under the version on trial, as far as the queue is not busy.

    busy_at: with so many jobs waiting, inputs are left out; shadows must not make callers wait.
    """

    def __init__(
        self,
        scheduler: Answerer,
        bank: PromptBank[LoadedPrompt],
        judge: TrialJudge,
        metrics: ServerMetrics,
        *,
        busy_at: int,
    ) -> None:
        self._scheduler = scheduler
        self._bank = bank
        self._judge = judge
        self._metrics = metrics
        self._busy_at = busy_at

    def ask(self, trial: Trial, on_trial: Target, given: Input, label_in_place: str) -> None:
        """Never raises and never waits: what goes wrong counts against the version on trial, or is left out."""
        prompt = on_trial.prompt
        if self._scheduler.queued >= self._busy_at:
            self._metrics.shadows.labels(prompt.task.name, "left out").inc()
            return
        started = time.monotonic()
        self._bank.hold(prompt.digest, lambda: prompt)

        def deliver(event: Event) -> None:
            self._bank.release(prompt.digest)
            if isinstance(event, Scored):
                at = max(range(len(event.logits)), key=lambda index: event.logits[index])
                self._compare(trial, label_in_place, prompt.task.label_names[at], time.monotonic() - started)
            elif isinstance(event, Failed):
                self._fail(trial, event.error)

        try:
            ids = prompt.encoder.encode(prompt.row(given))
            self._scheduler.submit([ScoreJob(prompt.digest, ids, prompt.label_token_ids, deliver)])
        except PromptStoreError as error:
            self._bank.release(prompt.digest)
            if not isinstance(error, OverloadedError | NotServingError):
                self._fail(trial, error)

    def _compare(self, trial: Trial, in_place: str, on_trial: str, seconds: float) -> None:
        trial.note(is_on_trial=True, seconds=seconds)
        trial.compare(in_place, on_trial)
        is_same = in_place == on_trial
        self._metrics.shadows.labels(trial.rollout.task, "same" if is_same else "different").inc()
        if not is_same:
            fields = {"version": str(trial.version), "label_in_place": in_place, "label_on_trial": on_trial}
            logger.info("the version on trial gives another label", extra={"fields": fields})
        self._judge.judge(trial)

    def _fail(self, trial: Trial, error: BaseException) -> None:
        self._metrics.shadows.labels(trial.rollout.task, "failed").inc()
        trial.note(is_on_trial=True, error=error)
        self._judge.judge(trial)
