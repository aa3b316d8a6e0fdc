"""From figures on the device to events."""

from collections.abc import Callable, Iterator, Sequence

import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.events import Notice, StepReport, ValidationReport
from promptstore.tuning.fitting import Fitting
from promptstore.tuning.gradient import StepGradients
from promptstore.tuning.passes import Passes
from promptstore.tuning.scoring import score
from promptstore.tuning.token_budget import TokenBudget


class Meter:
    """Time and work between reports. Validation and whoever consumes the events count as neither."""

    def __init__(self, model: FrozenModel, clock: Callable[[], float]) -> None:
        self._device = model.device
        self._clock = clock
        self._began: float | None = None
        self._rows = 0
        self._positions = 0

    def start(self) -> None:
        """Before a step; the first since the last report starts the clock."""
        if self._began is None:
            self._began = self._clock()

    def count(self, step: StepGradients) -> None:
        self._rows += step.rows
        self._positions += step.positions

    def stop(self) -> tuple[float, float, float]:
        """Seconds, examples/s and tokens/s since the last report; then begins again."""
        seconds = max(1e-9, self._clock() - (self._began or 0.0))
        found = (seconds, self._rows / seconds, self._positions / seconds)
        self._began, self._rows, self._positions = None, 0, 0
        return found

    def memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0

    def now(self) -> float:
        return self._clock()


def step_reports(fittings: Sequence[Fitting], meter: Meter) -> Iterator[StepReport]:
    """Every step since the last report. Fetches all figures at once: the one time the host waits for the device."""
    records = [(fitting, record) for fitting in fittings for record in fitting.take_records()]
    figures = torch.stack([torch.stack([each.loss, each.norm.to(each.loss.device)]) for _, each in records]).tolist()
    seconds, examples_per_s, tokens_per_s = meter.stop()
    memory_bytes = meter.memory_bytes()
    for fitting in fittings:
        fitting.seconds += seconds
    for (fitting, record), (loss, norm) in zip(records, figures, strict=True):
        fitting.judge(record.step, loss, norm)
        yield StepReport(
            job=fitting.name,
            step=record.step,
            steps=fitting.config.steps,
            loss=loss,
            learning_rate=fitting.config.learning_rate_at(record.step),
            gradient_norm=norm,
            examples_per_s=examples_per_s,
            tokens_per_s=tokens_per_s,
            memory_bytes=memory_bytes,
        )


def validation_reports(
    model: FrozenModel, passes: Passes, budget: TokenBudget, fittings: Sequence[Fitting]
) -> Iterator[ValidationReport]:
    """A look at the validation rows of every prompt that is due, all in the same passes."""
    due = [fitting for fitting in fittings if fitting.is_validation_due and fitting.cause is None]
    if not due:
        return
    prompts = [fitting.prompt for fitting in due]
    scored = score(model, passes, budget, prompts, [fitting.prepared.validation for fitting in due])
    for fitting, columns in zip(due, scored, strict=True):
        value, loss, is_best = fitting.validated(columns)
        yield ValidationReport(fitting.name, fitting.step, fitting.metric, value, loss, is_best)


def memory_notice(budget: TokenBudget) -> Iterator[Notice]:
    """Says once that memory ran out."""
    if budget.has_news:
        budget.has_news = False
        yield Notice(
            None,
            f"memory ran out: passes compute at most {budget.tokens} positions at a time from here on, fewer if it "
            "happens again; steps keep all their rows, so results are the same",
        )
