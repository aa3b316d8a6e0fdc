"""What flows are called with: typed here, shown as forms on Prefect's page, checked before anything runs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from promptstore.tuning.gate import GatePolicy


class Parameters(BaseModel):
    """Unknown names are refused: a misspelt setting would silently keep its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TuneParameters(Parameters):
    """Tune prompts, together, on one frozen model."""

    tasks: list[str] = Field(
        min_length=1, description="task files (.toml), or names of tasks in the store, whose newest version says how"
    )
    job: str | None = Field(
        default=None, description="name of this work: repeated under the same name it goes on; the run's id by default"
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="tuning settings that win over the task's"
    )
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")


class PromoteParameters(Parameters):
    """Move an alias to a version, if the version is good enough and nobody objects."""

    ref: str = Field(description="the candidate: task:number, task@alias or task@sha256:digest")
    alias: str = "production"
    task_file: str | None = Field(
        default=None, description="task file that names the validation data; what the version says by default"
    )
    minimum: float | None = Field(default=None, description="the task's metric must reach this")
    min_recall: float | None = Field(default=None, ge=0, le=1, description="of every label, so much must be found")
    max_drop: float = Field(default=0.05, ge=0, description="how far the metric may lie behind the alias's version")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="chance that a version which is no worse is refused")
    approval: Literal["automatic", "person"] = "automatic"
    approval_timeout_s: int = Field(default=86_400, ge=1)
    approval_poll_s: int = Field(default=10, ge=1)
    reason: str = Field(default="", description="why, for the log")
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")

    def policy(self) -> GatePolicy:
        return GatePolicy(minimum=self.minimum, min_recall=self.min_recall, max_drop=self.max_drop, alpha=self.alpha)
