"""What a job tells of one fit: its steps, its looks at validation rows, and the prompt that came out."""

from math import ceil

from promptstore.store.payload import encode_payload
from promptstore.tracking.figures import curves
from promptstore.tracking.port import RunLog
from promptstore.tuning.events import FitResult, StepReport, ValidationReport

# Sending a measurement takes about so long, in a thread that shares the interpreter with the fit.
POINT_COST_S = 1e-4
LARGEST_SHARE = 0.01
# Steps of all prompts together that are told whatever it costs: a second in all.
FREE_STEPS = 2000


def is_told(step: int, last_step: int, *, points: int, prompts: int, step_s: float) -> bool:
    """Whether a step is worth telling: every one, until telling takes more than 1 % of a step; then some, and the last.

    points: measurements of a step. prompts: how many are fitted together. step_s: how long their step takes.

    >>> [step for step in range(1, 10) if is_told(step, 9, points=6, prompts=1000, step_s=11)]
    [1, 2, 6, 9]
    """
    if step in {1, last_step} or step * prompts <= FREE_STEPS:
        return True
    stride = max(1, ceil(POINT_COST_S * points * prompts / max(1e-9, LARGEST_SHARE * step_s)))
    return step % stride == 0


class FitLog:
    """The part of a run that a fit tells. name: for people. prompts: how many are fitted together.

    Every call returns at once, whatever the tracking server does.
    """

    def __init__(self, run: RunLog, name: str, *, batch_size: int, prompts: int) -> None:
        self._run = run
        self._name = name
        self._batch_size = batch_size
        self._prompts = prompts
        self._loss: list[tuple[int, float]] = []
        self._validation: dict[str, list[tuple[int, float]]] = {}

    def step(self, report: StepReport) -> None:
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "examples_per_s": report.examples_per_s,
            "tokens_per_s": report.tokens_per_s,
        }
        if report.memory_bytes:
            values["device_memory_mib"] = report.memory_bytes / 2**20
        step_s = self._batch_size * self._prompts / max(1e-9, report.examples_per_s)
        if is_told(report.step, report.steps, points=len(values), prompts=self._prompts, step_s=step_s):
            self._run.log_metrics({f"train/{name}": value for name, value in values.items()}, step=report.step)
            self._loss.append((report.step, report.loss))

    def validation(self, report: ValidationReport) -> None:
        values = {report.metric: report.value, "loss": report.loss}
        self._run.log_metrics({f"validation/{name}": value for name, value in values.items()}, step=report.step)
        self._validation.setdefault(report.metric, []).append((report.step, report.value))

    def fitted(self, result: FitResult) -> None:
        """The prompt at its best step and at its last, and the curves that led there."""
        self._run.log_artifact("prompts/best.safetensors", encode_payload(result.prompt))
        self._run.log_artifact("prompts/last.safetensors", encode_payload(result.last))
        self._run.log_metrics({"best_step": result.best_step, "fit_seconds": result.seconds}, step=result.steps)
        self._run.set_tags({"stopped": result.reason})
        self._run.log_artifact("figures/loss.png", curves({"loss": self._loss}, f"{self._name}: training", "loss"))
        validation = curves(self._validation, f"{self._name}: validation", result.metric)
        self._run.log_artifact("figures/validation.png", validation)
