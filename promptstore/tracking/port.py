"""What a job says about its runs, whoever listens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
DatasetContext = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class RunHeader:
    """A run as it begins.

    key: names this piece of work and is the same when the work is repeated, so a repeated job goes on in the run
        that it began instead of beginning another.
    experiment: where people look for it; one per task.
    parent: key of the run this one belongs to.
    """

    key: str
    experiment: str
    name: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """The rows that a run read. digest: SHA-256 of the rows; source: where they came from, as the task names it."""

    name: str
    digest: str
    source: str
    num_rows: int
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrackingReport:
    """How the telling went. Nothing is lost without a word: what did not arrive is in `spool` or `refused`.

    error: why the tracking server could not be reached, the last time that it could not.
    refused: what the server will never take (a deleted run, a name it forbids), with its reason.
    """

    delivered: int = 0
    spooled: int = 0
    spool: Path | None = None
    error: str | None = None
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.spool is not None:
            return (
                f"tracking: {self.spooled} records could not be sent ({self.error}); they are kept in {self.spool} "
                "and are sent by the next job or retraining, or by `promptstore resend`"
            )
        said = f"tracking: {self.delivered} records sent"
        return f"{said}, {len(self.refused)} refused: {self.refused[0]}" if self.refused else said


class RunLog(Protocol):
    """One run, told as it happens. Every method but `run_id` returns at once, and none raises for the server's sake."""

    def log_params(self, values: Mapping[str, object]) -> None:
        """Settings; nested mappings are flattened to `outer.inner`."""

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Measurements at a step."""

    def set_tags(self, values: Mapping[str, str]) -> None:
        """What people filter by; a later value replaces an earlier one."""

    def log_dataset(self, dataset: DatasetRecord, context: DatasetContext) -> None:
        """The rows that went in."""

    def log_artifact(self, path: str, data: bytes) -> None:
        """A file of the run; the same path again replaces it."""

    def end(self, status: RunStatus = "FINISHED") -> None:
        """The run is over; later calls still count."""

    def run_id(self, timeout_s: float) -> str | None:
        """The server's id of this run, waiting at most `timeout_s` for it; `None` if the server has not said."""


class Tracker(Protocol):
    """Where runs are told. Safe to use from many threads."""

    def start(self, header: RunHeader) -> RunLog:
        """Begin a run, or go on in the one that was begun under the same key."""

    def close(self) -> TrackingReport:
        """Send what is left, waiting a bounded time, and say how it went. Call it once, at the end."""
