"""What a job tells of the prompt it fits for a task: a run for the job's share of the task, a child for the prompt.

An ensemble has a grandchild for each of its members, so that their curves lie over one another.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.tracking.figures import confusion_matrix
from promptstore.tracking.port import DatasetContext, DatasetRecord, RunHeader, RunStatus, Tracker
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.job_fit_log import FitLog
from promptstore.tuning.rows import Rows

EXPERIMENTS = "promptstore"
RUN_ID_TIMEOUT_S = 30.0


class PromptLog:
    """The runs of one task in one job. Every call returns at once, whatever the tracking server does.

    jobs: the task's fits: one, or one for each member of an ensemble. prompts: how many are fitted together, those of
    other tasks included.
    """

    def __init__(
        self,
        tracker: Tracker,
        task: TaskSpec,
        job: str,
        tags: Mapping[str, str],
        *,
        jobs: Sequence[FitJob],
        prompts: int,
    ) -> None:
        self._task = task
        common = {**tags, "task": task.name, "job": job}
        key = f"{job}/{task.name}"
        experiment = f"{EXPERIMENTS}/{task.name}"
        self._job_run = tracker.start(RunHeader(key, experiment, job, tags={**common, "role": "job"}))
        self._run = tracker.start(
            RunHeader(f"{key}/prompt", experiment, f"{task.name} {job}", parent=key, tags={**common, "role": "prompt"})
        )
        self._member_runs = []
        self.fits: dict[str, FitLog] = {}
        for each in jobs:
            run = self._run
            if len(jobs) > 1:
                header = RunHeader(
                    f"{key}/prompt/{each.name}",
                    experiment,
                    f"{each.name} {job}",
                    parent=f"{key}/prompt",
                    tags={**common, "role": "member"},
                )
                run = tracker.start(header)
                run.log_params(each.config.to_json())
                self._member_runs.append(run)
            self.fits[each.name] = FitLog(run, each.name, batch_size=each.config.batch_size, prompts=prompts)

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

    def evaluation(self, name: str, found: Evaluation, *, step: int) -> None:
        """How the prompt, or the model without one, does on held-out rows."""
        self.figures(name, {**found.metrics, **found.member_metrics}, step=step)
        self._run.log_artifact(f"evaluation/{name}.json", json.dumps(found.to_json(), indent=2).encode())
        if found.labels:
            title = f"{self._task.name}: {name} on held-out rows"
            matrix: list[list[int]] = found.confusion.tolist()
            self._run.log_artifact(f"figures/confusion_{name}.png", confusion_matrix(found.labels, matrix, title))

    def figures(self, name: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Of an evaluation: its metrics alone, where an earlier run holds the rest."""
        for run in (self._job_run, self._run):
            run.log_metrics({f"{name}/{metric}": value for metric, value in metrics.items()}, step=step)

    def machine(self, figures: Mapping[str, float], *, step: int) -> None:
        """How the machine does meanwhile; on both runs, as MLflow shows system metrics run by run."""
        for run in (self._job_run, self._run):
            run.log_metrics(figures, step=step)

    def combined(self, payload: bytes) -> None:
        """The members of an ensemble in one file, as it is published."""
        self._run.log_artifact("prompts/ensemble.safetensors", payload)

    def published(self, version: PromptVersion) -> None:
        tags: dict[str, str] = {"version": str(version), "digest": version.digest}
        for run in (self._job_run, self._run, *self._member_runs):
            run.set_tags(tags)
            run.end()

    def failed(self, reason: str, status: RunStatus = "FAILED") -> None:
        for run in (*self._member_runs, self._run, self._job_run):
            run.set_tags({"failure": reason})
            run.end(status)


def tags_of(model: Any, git_commit: str | None) -> dict[str, str]:
    """What every run of a job is filtered by."""
    tags = {"model": model.fingerprint.name, "model_digest": model.fingerprint.weights_digest}
    return tags | ({"mlflow.source.git.commit": git_commit} if git_commit else {})
