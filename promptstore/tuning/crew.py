"""Who is being fitted: prompts that wait, prompts at work, prompts that are done, and the checkpoint of them all."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from promptstore.errors import StoreUnavailableError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning import ranks
from promptstore.tuning.events import CheckpointSaved, FitEvent, FitFinished, FitResult, Notice
from promptstore.tuning.fit_checkpoint import (
    CheckpointSlot,
    Saved,
    decode_checkpoint,
    encode_checkpoint,
    require_same,
    saved_result,
)
from promptstore.tuning.fit_job import PreparedJob, notices
from promptstore.tuning.fitting import Fitting


class Crew:
    """At most `max_active` prompts at work. Takes up a checkpoint where there is one.

    Raises:
        InvalidInputError: the checkpoint is of another fit. CorruptError: it is damaged.
    """

    def __init__(
        self,
        model: FrozenModel,
        prepared: Sequence[PreparedJob],
        *,
        max_active: int,
        checkpoint: CheckpointSlot | None,
        save_every_s: float,
    ) -> None:
        self.waiting = deque(prepared)
        self.active: list[Fitting] = []
        self.finished: dict[str, FitResult] = {}
        self._model = model
        self._max_active = max_active
        self._checkpoint = checkpoint
        self._save_every_s = save_every_s
        self._saved_at: float | None = None
        self._has_failed = False
        self._identities = {} if checkpoint is None else {each.job.name: each.job.identity(model) for each in prepared}
        self._saved: Mapping[str, Saved] = {}
        if checkpoint is not None and (data := checkpoint.load()) is not None:
            self._saved = decode_checkpoint(data)
            for name in self._saved.keys() & self._identities.keys():
                require_same(name, self._saved[name], self._identities[name])

    def admit(self) -> Iterator[FitEvent]:
        """Waiting prompts take the free places; those that had finished before pass through."""
        while self.waiting and len(self.active) < self._max_active:
            prepared = self.waiting.popleft()
            name = prepared.job.name
            saved = self._saved.get(name)
            if saved is not None and (result := saved_result(self._model, saved)) is not None:
                self.finished[name] = result
                yield FitFinished(name, result)
                continue
            yield from notices(prepared)
            fitting = Fitting(self._model, prepared)
            if saved is not None:
                fitting.restore(saved.tensors, saved.figures)
            self.active.append(fitting)

    def retire(self, now: float) -> Iterator[FitEvent]:
        """Prompts that are done leave. What was reached is saved before it is said, if it is time to."""
        leaving = {each.name: each.result(self._model, each.reason) for each in self.active if each.reason is not None}
        self.active = [each for each in self.active if each.name not in leaving]
        self.finished |= leaving
        yield from self._save(now, is_urgent=bool(leaving))
        for name, result in leaving.items():
            yield FitFinished(name, result)

    def _save(self, now: float, *, is_urgent: bool) -> Iterator[FitEvent]:
        if self._checkpoint is None:
            return
        if not is_urgent and self._saved_at is not None and now - self._saved_at < self._save_every_s:
            return
        kept = {name: each for name, each in self._saved.items() if self._is_still_waiting(name)}
        # Whether it can be saved or not, the next try waits its turn: a store that is away must not slow down the fit.
        self._saved_at = now
        try:
            if ranks.is_first():
                self._checkpoint.save(encode_checkpoint(self.active, self.finished, self._identities, kept))
        except StoreUnavailableError as error:
            if not self._has_failed:
                yield Notice(None, f"the checkpoint cannot be saved, and the fit goes on without: {error}")
            self._has_failed = True
            return
        self._has_failed = False
        yield CheckpointSaved({each.name: each.step for each in self.active})

    def _is_still_waiting(self, name: str) -> bool:
        return any(each.job.name == name for each in self.waiting)
