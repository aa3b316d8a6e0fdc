"""Asks a version on trial on the side: the answer goes to nobody, only whether it is the same."""

import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace

from promptstore.errors import InvalidInputError, NotServingError, OverloadedError, PromptStoreError
from promptstore.runtime.answerer import Answerer
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.job import Event, Failed, Finished, Generated, GenerateJob, Job, Scored, ScoreJob
from promptstore.runtime.sampling import Sampling
from promptstore.serving.loaded import Input, LoadedPrompt
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.table import Target
from promptstore.serving.trials import Trial, TrialJudge

logger = logging.getLogger(__name__)


class Shadow:
    """Asks for labels and greedy texts again under the version on trial, as far as the queue is not busy.

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

    def ask_label(self, trial: Trial, on_trial: Target, given: Input, in_place: str) -> None:
        """in_place: the label that the caller got. Never raises and never waits: what goes wrong counts against the
        version on trial, or is left out."""
        prompt = on_trial.prompt

        def read(event: Event) -> str | None:
            if not isinstance(event, Scored):
                return None
            at = max(range(len(event.logits)), key=lambda index: event.logits[index])
            return prompt.task.label_names[at]

        def job(ids: list[int], deliver: Callable[[Event], None]) -> Job:
            return ScoreJob(prompt.digest, ids, prompt.label_token_ids, deliver)

        self._ask(trial, prompt, given, in_place, job, read)

    def ask_text(self, trial: Trial, on_trial: Target, given: Input, sampling: Sampling, in_place: str) -> None:
        """As `ask_label`, for a text. Sampled ones are left out: they differ by chance, whatever the versions."""
        prompt = on_trial.prompt
        if sampling.temperature > 0:
            self._leave_out(prompt)
            return
        pieces: list[str] = []

        def read(event: Event) -> str | None:
            if isinstance(event, Generated | Finished):
                pieces.append(event.text)
            return "".join(pieces) if isinstance(event, Finished) else None

        def job(ids: list[int], deliver: Callable[[Event], None]) -> Job:
            return GenerateJob(prompt.digest, ids, replace(sampling, top_logprobs=None), deliver)

        self._ask(trial, prompt, given, in_place, job, read)

    def _ask(
        self,
        trial: Trial,
        prompt: LoadedPrompt,
        given: Input,
        in_place: str,
        job: Callable[[list[int], Callable[[Event], None]], Job],
        read: Callable[[Event], str | None],
    ) -> None:
        """read: the whole answer, with its last event."""
        if self._scheduler.queued >= self._busy_at:
            self._leave_out(prompt)
            return
        started, request = time.monotonic(), copy_context()  # what is logged names the request
        self._bank.hold(prompt.digest, lambda: prompt)

        def deliver(event: Event) -> None:
            answer = read(event)
            if answer is not None:
                self._bank.release(prompt.digest)
                request.run(self._compare, trial, in_place, answer, time.monotonic() - started)
            elif isinstance(event, Failed):
                self._bank.release(prompt.digest)
                self._fail(trial, event.error)

        try:
            self._scheduler.submit([job(prompt.encoder.encode(prompt.row(given)), deliver)])
        except PromptStoreError as error:
            self._bank.release(prompt.digest)
            if isinstance(error, InvalidInputError):
                trial.refuse()
            if not isinstance(error, OverloadedError | NotServingError):
                self._fail(trial, error)

    def _leave_out(self, prompt: LoadedPrompt) -> None:
        self._metrics.shadows.labels(prompt.task.name, "left out").inc()

    def _compare(self, trial: Trial, in_place: str, on_trial: str, seconds: float) -> None:
        trial.note(is_on_trial=True, seconds=seconds)
        trial.compare(in_place, on_trial)
        is_same = in_place == on_trial
        self._metrics.shadows.labels(trial.rollout.task, "same" if is_same else "different").inc()
        if not is_same:
            fields = {"version": str(trial.version), "in_place": in_place, "on_trial": on_trial}
            logger.info("the version on trial gives another answer", extra={"fields": fields})
        self._judge.judge(trial)

    def _fail(self, trial: Trial, error: BaseException) -> None:
        self._metrics.shadows.labels(trial.rollout.task, "failed").inc()
        trial.note(is_on_trial=True, error=error)
        self._judge.judge(trial)
