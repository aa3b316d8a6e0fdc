"""What became of each input: told to the metrics, and to the trial that its version takes part in."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    def taking(self, targets: Sequence[Target], inputs: int = 1) -> Iterator[None]:
        """Counts each input of each target if its request goes no further."""
        try:
            yield
        except BaseException as error:
            for target in targets:
                self._count(target, _outcome(error), inputs)
            raise

    @contextmanager
    def taken(self, targets: Sequence[Target]) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
        """Counts what becomes of the inputs of one request, a target each, that are queued.

        Gives what to wait in for the answer to the input of a number. When the context ends, those without one are
        counted as refused if another was, for the request was then; as failed if another of their version did; and
        as cancelled otherwise.
        """
        found: dict[int, str] = {}

        def note(number: int, outcome: str) -> None:
            found[number] = outcome
            self._count(targets[number], outcome)

        @contextmanager
        def answering(number: int) -> Iterator[None]:
            try:
                yield
            except Exception as error:
                note(number, _outcome(error))
                self._tell_trial(targets[number], error=error)
                raise
            note(number, "ok")

        try:
            yield answering
        finally:
            is_refused = "refused" in found.values()
            failed = {targets[number].version.digest for number, outcome in found.items() if outcome == "failed"}
            for number in set(range(len(targets))) - set(found):
                has_failed = targets[number].version.digest in failed
                note(number, "refused" if is_refused else "failed" if has_failed else "cancelled")

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


def _outcome(error: BaseException) -> str:
    """Of an input, by what its request ended with."""
    if not isinstance(error, Exception):
        return "cancelled"
    return "refused" if isinstance(error, PromptStoreError) and not isinstance(error, CorruptError) else "failed"
