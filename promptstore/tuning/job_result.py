"""What a job did, in values small enough to travel anywhere."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TunedTask:
    """One task of a job. untuned, text_prompt, tuned: the task's metric on held-out rows, without a prompt, with an
    instruction and examples in its place, and with the new one.

    members: prompts that answer as one; then member_average and member_best are the metric of one of them.
    mlflow_run: the run's id, `None` without MLflow. failure: why there is no version; the other tasks went on.
    """

    task: str
    metric: str = ""
    untuned: float | None = None
    text_prompt: float | None = None
    tuned: float | None = None
    version: str | None = None
    digest: str | None = None
    mlflow_run: str | None = None
    num_virtual_tokens: int = 0
    parameters: int = 0
    payload_bytes: int = 0
    members: int = 1
    member_average: float | None = None
    member_best: float | None = None
    seconds: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class JobResult:
    """Every task of a job, in the order they were asked for. tracking: how telling MLflow went, for people."""

    job: str
    model: str
    tasks: tuple[TunedTask, ...]
    tracking: str

    @property
    def failures(self) -> Sequence[str]:
        return [f"{each.task}: {each.failure}" for each in self.tasks if each.failure is not None]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tuned_by(job: str) -> str:
    """What the log says of a version that a job made."""
    return f"tuned by job {job}"
