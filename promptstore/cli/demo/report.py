"""What the demo found: the facts as JSON, and the table and commands a person reads at the end."""

import json
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptstore.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task: accuracies on held-out rows, the version in production, its size, and the seconds of its fit."""

    task: str
    untuned_accuracy: float
    tuned_accuracy: float
    version: str
    digest: str
    parameters: int
    payload_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything the demo claims. seconds: wall clock of the whole demo."""

    tasks: tuple[TaskResult, ...]
    requests: int
    failed_requests: int
    switched_in_flight: bool
    rolled_back: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": {task.task: asdict(task) for task in self.tasks},
            "requests": self.requests,
            "failed_requests": self.failed_requests,
            "switched_in_flight": self.switched_in_flight,
            "rolled_back": self.rolled_back,
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> list[dict[str, Any]]:
        """Rows for people."""
        return [
            {
                "task": task.task,
                "untuned": f"{task.untuned_accuracy:.3f}",
                "tuned": f"{task.tuned_accuracy:.3f}",
                "version": task.version,
                "digest": task.digest[:12],
                "parameters": f"{task.parameters:,}",
                "bytes": f"{task.payload_bytes:,}",
                "seconds": f"{task.seconds:.0f}",
            }
            for task in self.tasks
        ]


def require_writable(path: Path) -> None:
    """Find out before the minutes of work, not after them. Raises as `write_json`."""
    if not path.absolute().parent.is_dir():
        raise InvalidInputError(f"--json {path}: there is no folder {path.absolute().parent}; make it first")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise InvalidInputError(f"--json {path} cannot be written; name another file")


def write_json(report: DemoReport, path: Path) -> None:
    """Raises InvalidInputError: `path` cannot be written."""
    try:
        path.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"--json {path}: {error.strerror}") from error


def next_steps(environment_file: Path) -> str:
    """The commands that open what the demo left behind."""
    return "\n".join(
        (
            "What the demo left behind; open it with",
            f"  . {shlex.quote(str(environment_file))}",
            '  mlflow server --backend-store-uri "$PROMPTSTORE_MLFLOW_URI" --port 5000   # the runs, at :5000',
            "  prefect server start                                                      # the flows, at :4200",
            "  promptstore serve                                                         # the server's page, at :8080",
            "  promptstore history                                                       # every move of every alias",
        )
    )
