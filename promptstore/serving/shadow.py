"""Asks the other version of a trial on the side: the answer goes to nobody, only whether it is the same."""

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
    """Asks for labels and greedy texts again under the other version, as far as the queue is not busy.

    That is the one on trial, or, where that answers a share of callers, the one in place.

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

    def ask_label(self, trial: Trial, other: Target, given: Input, answered: str) -> None:
        """answered: the label that the caller got. Never raises and never waits: what goes wrong with the version on
        trial counts against it, anything else is left out."""
        prompt = other.prompt

        def read(event: Event) -> str | None:
            if not isinstance(event, Scored):
                return None
            at = max(range(len(event.logits)), key=lambda index: event.logits[index])
            return prompt.task.label_names[at]

        def job(ids: list[int], deliver: Callable[[Event], None]) -> Job:
            return ScoreJob(prompt.digest, ids, prompt.label_token_ids, deliver)

        self._ask(trial, other, given, answered, job, read)

    def ask_text(self, trial: Trial, other: Target, given: Input, sampling: Sampling, answered: str) -> None:
        """As `ask_label`, for a text. Sampled ones are left out: they differ by chance, whatever the versions."""
        prompt = other.prompt
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

        self._ask(trial, other, given, answered, job, read)

    def _ask(
        self,
        trial: Trial,
        other: Target,
        given: Input,
        answered: str,
        job: Callable[[list[int], Callable[[Event], None]], Job],
        read: Callable[[Event], str | None],
    ) -> None:
        """read: the whole answer, with its last event."""
        prompt = other.prompt
        if self._scheduler.queued >= self._busy_at:
            self._leave_out(prompt)
            return
        started, request = time.monotonic(), copy_context()  # what is logged names the request
        self._bank.hold(prompt.digest, lambda: prompt)

        def deliver(event: Event) -> None:
            answer = read(event)
            if answer is not None:
                self._bank.release(prompt.digest)
                request.run(self._compare, trial, other, answered, answer, time.monotonic() - started)
            elif isinstance(event, Failed):
                self._bank.release(prompt.digest)
                self._fail(trial, other, event.error)

        try:
            self._scheduler.submit([job(prompt.encoder.encode(prompt.row(given)), deliver)])
        except PromptStoreError as error:
            self._bank.release(prompt.digest)
            if isinstance(error, InvalidInputError) and _is_on_trial(trial, other):
                trial.refuse()
            if not isinstance(error, OverloadedError | NotServingError):
                self._fail(trial, other, error)

    def _leave_out(self, prompt: LoadedPrompt) -> None:
        self._metrics.shadows.labels(prompt.task.name, "left out").inc()

    def _compare(self, trial: Trial, other: Target, answered: str, answer: str, seconds: float) -> None:
        in_place, on_trial = answer, answered
        if _is_on_trial(trial, other):
            in_place, on_trial = answered, answer
            trial.note(is_on_trial=True, seconds=seconds)
        trial.compare(in_place, on_trial)
        is_same = in_place == on_trial
        self._metrics.shadows.labels(trial.rollout.task, "same" if is_same else "different").inc()
        if not is_same:
            fields = {"version": str(trial.version), "in_place": in_place, "on_trial": on_trial}
            logger.info("the version on trial gives another answer", extra={"fields": fields})
        self._judge.judge(trial)

    def _fail(self, trial: Trial, other: Target, error: BaseException) -> None:
        self._metrics.shadows.labels(trial.rollout.task, "failed").inc()
        if _is_on_trial(trial, other):
            trial.note(is_on_trial=True, error=error)
            self._judge.judge(trial)


def _is_on_trial(trial: Trial, target: Target) -> bool:
    return target.version.number == trial.rollout.number
