"""What flows are called with: typed here, shown as forms on Prefect's page, checked before anything runs."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from promptstore.batch.score import ROWS_AT_ONCE, ScoreRequest
from promptstore.errors import InvalidInputError
from promptstore.store.retention import RetentionPolicy
from promptstore.tuning.gate import GatePolicy

# Whoever deploys a flow, or shows its form, does not wait for torch and transformers.
if TYPE_CHECKING:
    from promptstore.tuning.job_due import DueRules
    from promptstore.tuning.job_upgrade import UpgradeRequest


class Parameters(BaseModel):
    """Unknown names are refused: a misspelt setting would silently keep its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FanOut(Parameters):
    """Spread the tasks over a Ray cluster: one process for every few of them, on the devices that it asks for."""

    address: str | None = Field(
        default=None,
        description="local (a cluster of its own), auto, host:port or ray://host:port; the setting "
        "PROMPTSTORE_RAY_ADDRESS by default",
    )
    tasks_per_fit: int = Field(default=1, ge=1, description="so many tasks share one model and its devices")
    cpus_per_fit: float = Field(default=1, gt=0, description="cores that one fit occupies")
    gpus_per_fit: float = Field(
        default=0, ge=0, description="GPUs that one fit occupies: a share of one, or whole ones; 0 fits on CPUs"
    )

    @field_validator("gpus_per_fit")
    @classmethod
    def _is_a_share_or_whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"{value:g} GPUs: more than one must be a whole number")
        return value


class TuneParameters(Parameters):
    """Tune prompts, together, on one frozen model."""

    tasks: list[str] = Field(
        min_length=1,
        description="task files (.toml), folders of them, or tasks in the store, whose newest version says how",
    )
    job: str | None = Field(
        default=None, description="name of this work: repeated under the same name it goes on; the run's id by default"
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="tuning settings that win over the task's"
    )
    search: bool = Field(default=False, description="find learning rate and initialiser first, if not given")
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")
    fan_out: FanOut | None = Field(
        default=None, description="spread the tasks over a Ray cluster instead of fitting them together here"
    )

    @property
    def names(self) -> str:
        """The tasks, for the run's name: their files' folders are the same for every run."""
        return ", ".join(Path(each).stem for each in self.tasks)


class GateParameters(Parameters):
    """What the gate asks of a version, compared with the one in use on the same held-out rows: `GatePolicy`."""

    minimum: float | None = Field(default=None, description="the task's metric must reach this")
    alpha: float = Field(default=0.05, gt=0, lt=1, description="chance that a version which is no worse is refused")
    max_drop: float = Field(default=0.05, ge=0, description="how far the metric may lie behind the version in use")
    min_recall: float | None = Field(default=None, ge=0, le=1, description="of every label, so much must be found")
    min_rows: int = Field(default=20, ge=1, description="held-out rows, in all and in each slice, that prove anything")
    slices: tuple[str, ...] = Field(
        default=(), description="columns of the data: no worse on the rows of any of their values"
    )
    min_slice_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="of the rows of each slice, so much must be answered correctly"
    )
    max_latency_ms: float | None = Field(
        default=None, gt=0, description="milliseconds in which one row's label, or first token, must be there"
    )
    max_latency_ratio: float | None = Field(
        default=None, gt=0, description="that time, as a multiple of what the version in use takes"
    )
    max_norm: float | None = Field(default=None, gt=0, description="no virtual token may be longer")

    @model_validator(mode="after")
    def _is_a_policy(self) -> Self:
        try:
            self.policy()
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        return self

    def policy(self) -> GatePolicy:
        return GatePolicy(**self.model_dump())


GATE = Field(default=GateParameters(), description="what the gate asks")


class PromoteParameters(Parameters):
    """Move an alias to a version, if the version is good enough and nobody objects."""

    ref: str = Field(description="the candidate: task:number, task@alias or task@sha256:digest")
    alias: str = "production"
    task_file: str | None = Field(
        default=None,
        description="task file that names the validation data, or a folder with it; what the version says by default",
    )
    gate: GateParameters = GATE
    approval: Literal["automatic", "person"] = "automatic"
    approval_timeout_s: int = Field(default=86_400, ge=1)
    approval_poll_s: int = Field(
        default=10, ge=1, description="seconds between looks for an answer, where no deployment runs this"
    )
    reason: str = Field(default="", description="why, for the log")
    only_news: bool = Field(default=False, description="do nothing if a newer version was published since, either")
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")


class RetrainParameters(Parameters):
    """Find out which tasks are due and why, tune those, and promote what passes."""

    tasks: list[str] = Field(min_length=1, description="task files (.toml), folders of them, or tasks in the store")
    on_new_data: bool = True
    on_changed_task: bool = True
    on_new_model: bool = True
    max_age_days: float | None = Field(default=None, gt=0, description="a newest version older than this is due")
    max_decay: float | None = Field(
        default=None, ge=0, description="due if the metric of the version in use fell by more on today's rows"
    )
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="tuning settings that win over the task's"
    )
    promote: bool = Field(default=True, description="gate and promote what was tuned")
    alias: str = "production"
    gate: GateParameters = GATE
    approval: Literal["automatic", "person"] = "automatic"
    approval_timeout_s: int = Field(default=86_400, ge=1)
    search: bool = Field(default=False, description="find learning rate and initialiser first, if not given")
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")
    old_model: str | None = Field(
        default=None, description="base model before this one: what is in use on it moves first, all in one release"
    )
    fan_out: FanOut | None = Field(
        default=None, description="spread the tasks over a Ray cluster instead of fitting them together here"
    )

    def rules(self) -> "DueRules":
        from promptstore.tuning.job_due import DueRules

        return DueRules(
            on_new_data=self.on_new_data,
            on_changed_task=self.on_changed_task,
            on_new_model=self.on_new_model,
            max_age=None if self.max_age_days is None else timedelta(days=self.max_age_days),
            max_decay=self.max_decay,
            alias=self.alias,
        )

    def tuning(self, tasks: list[str], job: str) -> TuneParameters:
        return TuneParameters(
            tasks=tasks,
            job=job,
            overrides=self.overrides,
            search=self.search,
            model=self.model,
            fan_out=self.fan_out,
        )

    def upgrade(self, old_model: str) -> "UpgradeBaseParameters":
        return UpgradeBaseParameters(
            old_model=old_model,
            model=self.model,
            tasks=self.tasks,
            aliases=[self.alias],
            overrides=self.overrides,
            gate=self.gate,
        )

    def promotion(self, ref: str, task_file: str | None, reason: str) -> PromoteParameters:
        return PromoteParameters(
            ref=ref,
            task_file=task_file,
            reason=reason,
            alias=self.alias,
            approval=self.approval,
            approval_timeout_s=self.approval_timeout_s,
            model=self.model,
            gate=self.gate,
        )


class MaintainParameters(Parameters):
    """Look after a store: verify, expire, collect garbage, bring catalogue and copy up to date."""

    keep_newest: int = Field(default=10, ge=1, description="versions of each task that stay, whatever their age")
    keep_days: float = Field(default=30, ge=0, description="younger versions stay, however many")
    keep_previous: int = Field(default=3, ge=0, description="versions that each alias left last, to roll back to")
    grace_hours: float = Field(default=7 * 24, ge=0, description="bytes stay so long after nothing needs them")
    copy_to: str | None = Field(default=None, description="URL of a store in another region, brought up to date")

    def policy(self) -> RetentionPolicy:
        return RetentionPolicy(self.keep_newest, timedelta(days=self.keep_days), self.keep_previous)


class MirrorParameters(Parameters):
    """Show the log in MLflow's model registry."""

    tasks: list[str] | None = Field(default=None, description="names of tasks in the store; all by default")
    take_requests: bool = Field(
        default=False, description="promote what people asked for by moving an alias in MLflow: gate, then approval"
    )
    task_file: str | None = Field(
        default=None,
        description="for those promotions: folder with the task files; what a version says of its data by default",
    )
    gate: GateParameters = GATE
    approval: Literal["automatic", "person"] = "person"
    approval_timeout_s: int = Field(default=86_400, ge=1)

    def promotion(self, ref: str, alias: str) -> PromoteParameters:
        return PromoteParameters(
            ref=ref,
            alias=alias,
            task_file=self.task_file,
            reason="asked for on MLflow's page",
            approval=self.approval,
            approval_timeout_s=self.approval_timeout_s,
            gate=self.gate,
        )


class ScoreParameters(Parameters):
    """Answer every row of a file or data set by one version."""

    ref: str = Field(description="task, task@alias, task:number or task@sha256:digest")
    source: str = Field(description="rows: .jsonl, .csv or .parquet, a path or on s3://, or hf:<data set>/<split>")
    output: Path = Field(description="where the answers go, as JSON lines; repeated with the same output it goes on")
    url: str | None = Field(default=None, description="of a server to ask; by default the model is loaded here")
    keep: list[str] = Field(default_factory=list, description="fields of a row to repeat beside its answer")
    has_labels: bool = Field(default=True, description="judge the answers by the rows' labels, where they have some")
    rows_at_once: int = Field(default=ROWS_AT_ONCE, ge=1, description="rows between two writes")
    model: str | None = Field(default=None, description="base model; the setting PROMPTSTORE_MODEL by default")

    def request(self) -> ScoreRequest:
        return ScoreRequest(
            ref=self.ref,
            source=self.source,
            output=self.output,
            keep=tuple(self.keep),
            has_labels=self.has_labels,
            rows_at_once=self.rows_at_once,
        )


class UpgradeBaseParameters(Parameters):
    """Bring every prompt that the aliases name from the old base model to the new one, all in one release."""

    old_model: str = Field(description="base model that the prompts in use stand on")
    model: str | None = Field(default=None, description="the new one; the setting PROMPTSTORE_MODEL by default")
    tasks: list[str] = Field(
        default_factory=list, description="task files (.toml), folders of them, or tasks in the store; all by default"
    )
    aliases: list[str] = Field(default=["production"], min_length=1, description="what they name is brought over")
    overrides: dict[str, JsonValue] = Field(
        default_factory=dict, description="tuning settings that win over the tasks'; `initialise` starts all of them so"
    )
    gate: GateParameters = GATE
    allow_partial: bool = Field(default=False, description="release the tasks that pass even if others do not")

    def request(self) -> "UpgradeRequest":
        from promptstore.tuning.job_upgrade import UpgradeRequest

        return UpgradeRequest(
            old_model=self.old_model,
            tasks=self.tasks,
            aliases=self.aliases,
            overrides=self.overrides,
            policy=self.gate.policy(),
        )
