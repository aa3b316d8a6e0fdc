"""What became of each input: told to the metrics, and to the trial that its version takes part in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from promptstore.errors import CorruptError, PromptStoreError
from promptstore.runtime.job import Job
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.resolving import Resolver
from promptstore.serving.table import Target
from promptstore.serving.trials import TrialJudge


@dataclass(frozen=True, slots=True)
class Accounts:
    """For the loop that answers."""

    metrics: ServerMetrics
    judge: TrialJudge
    resolver: Resolver

    @contextmanager
    def refusing(self, targets: Sequence[Target], inputs: int = 1) -> Iterator[None]:
        """Counts a refusal for each input of each target: a request is answered whole, or not at all."""
        try:
            yield
        except PromptStoreError:
            for target in targets:
                self._count(target, "refused", inputs)
            raise

    @contextmanager
    def answering(self, target: Target) -> Iterator[None]:
        """Counts what becomes of one input that was taken."""
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except Exception as error:
            is_refused = isinstance(error, PromptStoreError) and not isinstance(error, CorruptError)
            outcome = "refused" if is_refused else "failed"
            self._tell_trial(target, error=error)
            raise
        finally:
            self._count(target, outcome)

    def batched(self, target: Target, job: Job) -> None:
        """What the engine said about the job; another answerer may not say."""
        task = target.version.task
        if job.waited_s is not None:
            self.metrics.queue_seconds.labels(task).observe(job.waited_s)
        if job.batch_rows is not None:
            self.metrics.batch_rows.labels(task).observe(job.batch_rows)
        if job.place is not None:
            self.metrics.prompts_found.labels(task, job.place).inc()

    def answered(self, target: Target, seconds: float, *, read: int, wrote: int = 0) -> None:
        """seconds: from queue to answer. read, wrote: tokens."""
        task = target.version.task
        self.metrics.answer_seconds.labels(task).observe(seconds)
        self._tell_trial(target, seconds=seconds)
        self.metrics.tokens.labels(task, "read").inc(read)
        self.metrics.tokens.labels(task, "written").inc(wrote)

    def _count(self, target: Target, outcome: str, inputs: int = 1) -> None:
        self.metrics.inputs.labels(target.version.task, str(target.version.number), outcome).inc(inputs)

    def _tell_trial(self, target: Target, *, seconds: float = 0.0, error: Exception | None = None) -> None:
        trial = self.resolver.trial_of(target)
        if trial is not None:
            is_on_trial = target.version.number == trial.rollout.number
            trial.note(is_on_trial=is_on_trial, seconds=seconds, error=error)
            self.judge.judge(trial)
