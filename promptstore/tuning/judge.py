"""Who says how well prompts do on one model, whether it has to be opened for that or not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.tuning.evaluation import Evaluation, EvaluationCase, Latency
from promptstore.tuning.evaluation_memory import EvaluationMemory

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel


class Judge(Protocol):
    """Judges prompts on the model of `fingerprint`. Its methods raise as `evaluate_all` and `measure_latency`."""

    @property
    def fingerprint(self) -> BaseModelFingerprint: ...

    def evaluate(self, cases: Sequence[EvaluationCase]) -> list[Evaluation]: ...

    def measure_latency(self, cases: Sequence[EvaluationCase]) -> list[Latency]: ...


@dataclass(frozen=True, slots=True)
class ModelJudge:
    """A model that is open, asked about every case."""

    model: "FrozenModel"

    @property
    def fingerprint(self) -> BaseModelFingerprint:
        return self.model.fingerprint

    def evaluate(self, cases: Sequence[EvaluationCase]) -> list[Evaluation]:
        from promptstore.tuning.evaluate import evaluate_all

        return evaluate_all(self.model, cases)

    def measure_latency(self, cases: Sequence[EvaluationCase]) -> list[Latency]:
        from promptstore.tuning.latency import measure_latency

        return measure_latency(self.model, cases)


class RememberingJudge:
    """Asks the model only about what nobody on this machine asked it before; opens it at the first such question.

    recalls: answer from memory at all; what the model says is kept either way.
    """

    def __init__(
        self, memory: EvaluationMemory, open_model: "Callable[[], FrozenModel]", *, recalls: bool = True
    ) -> None:
        self._memory = memory
        self._open_model = open_model
        self._recalls = recalls

    @cached_property
    def fingerprint(self) -> BaseModelFingerprint:
        return self._memory.fingerprint or self._opened.fingerprint

    def evaluate(self, cases: Sequence[EvaluationCase]) -> list[Evaluation]:
        known = {at: self._memory.recall(case) if self._recalls else None for at, case in enumerate(cases)}
        found = {at: evaluation for at, evaluation in known.items() if evaluation is not None}
        if missing := [at for at in known if at not in found]:
            judged = self._opened.evaluate([cases[at] for at in missing])
            for at, evaluation in zip(missing, judged, strict=True):
                self._memory.keep(self.fingerprint, cases[at], evaluation)
                found[at] = evaluation
        return [found[at] for at in range(len(cases))]

    def measure_latency(self, cases: Sequence[EvaluationCase]) -> list[Latency]:
        """Always by the model: how long it takes depends on this moment."""
        return self._opened.measure_latency(cases)

    @cached_property
    def _opened(self) -> ModelJudge:
        return ModelJudge(self._open_model())
