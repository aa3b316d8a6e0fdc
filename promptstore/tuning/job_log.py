"""What a job tells of the prompt it fits for a task: a run for the job's share of the task, a child for the prompt."""

import json
from collections.abc import Mapping
from math import ceil
from typing import Any

from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.tracking.figures import confusion_matrix, curves
from promptstore.tracking.port import DatasetContext, DatasetRecord, RunHeader, RunStatus, Tracker
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.events import FitResult, StepReport, ValidationReport
from promptstore.tuning.rows import Rows

EXPERIMENTS = "promptstore"
# Sending a measurement takes about so long, in a thread that shares the interpreter with the fit.
POINT_COST_S = 1e-4
LARGEST_SHARE = 0.01
# Steps of all prompts together that are told whatever it costs: a second in all.
FREE_STEPS = 2000
RUN_ID_TIMEOUT_S = 30.0


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


class PromptLog:
    """The runs of one task in one job. Every call returns at once, whatever the tracking server does."""

    def __init__(self, tracker: Tracker, task: TaskSpec, job: str, tags: Mapping[str, str], *, prompts: int) -> None:
        self._task = task
        common = {**tags, "task": task.name, "job": job}
        key = f"{job}/{task.name}"
        experiment = f"{EXPERIMENTS}/{task.name}"
        self._job_run = tracker.start(RunHeader(key, experiment, job, tags={**common, "role": "job"}))
        self._run = tracker.start(
            RunHeader(f"{key}/prompt", experiment, f"{task.name} {job}", parent=key, tags={**common, "role": "prompt"})
        )
        self._prompts = prompts
        self._loss: list[tuple[int, float]] = []
        self._validation: dict[str, list[tuple[int, float]]] = {}

    def run_id(self) -> str | None:
        """MLflow's id of the prompt's run; `None` if MLflow cannot be reached."""
        return self._run.run_id(RUN_ID_TIMEOUT_S)

    def begin(self, params: Mapping[str, object], rows: Mapping[DatasetContext, Rows]) -> None:
        """The settings and the data that go in."""
        for run in (self._job_run, self._run):
            run.log_params(params)
        for context, each in rows.items():
            fields = tuple(sorted({name for row in each for name in row}))
            record = DatasetRecord(f"{self._task.name} {context}", each.digest, each.source, len(each), fields)
            self._run.log_dataset(record, context)

    def step(self, report: StepReport, *, batch_size: int) -> None:
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "examples_per_s": report.examples_per_s,
            "tokens_per_s": report.tokens_per_s,
        }
        if report.memory_bytes:
            values["device_memory_mib"] = report.memory_bytes / 2**20
        step_s = batch_size * self._prompts / max(1e-9, report.examples_per_s)
        if is_told(report.step, report.steps, points=len(values), prompts=self._prompts, step_s=step_s):
            self._run.log_metrics({f"train/{name}": value for name, value in values.items()}, step=report.step)
            self._loss.append((report.step, report.loss))

    def validation(self, report: ValidationReport) -> None:
        values = {report.metric: report.value, "loss": report.loss}
        self._run.log_metrics({f"validation/{name}": value for name, value in values.items()}, step=report.step)
        self._validation.setdefault(report.metric, []).append((report.step, report.value))

    def fitted(self, best: bytes, last: bytes, result: FitResult) -> None:
        """The prompt at its best step and at its last, and the curves that led there."""
        self._run.log_artifact("prompts/best.safetensors", best)
        self._run.log_artifact("prompts/last.safetensors", last)
        self._run.log_metrics({"best_step": result.best_step, "fit_seconds": result.seconds}, step=result.steps)
        self._run.set_tags({"stopped": result.reason})
        name = self._task.name
        self._run.log_artifact("figures/loss.png", curves({"loss": self._loss}, f"{name}: training", "loss"))
        self._run.log_artifact("figures/validation.png", curves(self._validation, f"{name}: validation", result.metric))

    def evaluation(self, name: str, found: Evaluation, *, step: int) -> None:
        """How the prompt, or the model without one, does on held-out rows."""
        self.figures(name, found.metrics, step=step)
        self._run.log_artifact(f"evaluation/{name}.json", json.dumps(found.to_json(), indent=2).encode())
        if found.labels:
            title = f"{self._task.name}: {name} on held-out rows"
            matrix: list[list[int]] = found.confusion.tolist()
            self._run.log_artifact(f"figures/confusion_{name}.png", confusion_matrix(found.labels, matrix, title))

    def figures(self, name: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Of an evaluation: its metrics alone, where an earlier run holds the rest."""
        for run in (self._job_run, self._run):
            run.log_metrics({f"{name}/{metric}": value for metric, value in metrics.items()}, step=step)

    def published(self, version: PromptVersion) -> None:
        tags: dict[str, str] = {"version": str(version), "digest": version.digest}
        for run in (self._job_run, self._run):
            run.set_tags(tags)
            run.end()

    def failed(self, reason: str, status: RunStatus = "FAILED") -> None:
        for run in (self._run, self._job_run):
            run.set_tags({"failure": reason})
            run.end(status)


def tags_of(model: Any, git_commit: str | None) -> dict[str, str]:
    """What every run of a job is filtered by."""
    tags = {"model": model.fingerprint.name, "model_digest": model.fingerprint.weights_digest}
    return tags | ({"mlflow.source.git.commit": git_commit} if git_commit else {})
