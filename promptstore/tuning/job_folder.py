"""What a job remembers on disk, so that doing it again goes on instead of beginning again."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.manifest import Provenance
from promptstore.core.name import check_name
from promptstore.errors import ConflictError, CorruptError, InvalidInputError
from promptstore.store.files import write_atomically


@dataclass(frozen=True, slots=True)
class Decision:
    """What a job is about to publish, written down before it does: publishing it again names the same version.

    payload: the prompt as it lies in the store. metrics: on held-out rows, the baselines' as `untuned_…` and
    `text_prompt_…`. metric: the
    task's own among them. seconds: of the fit.
    """

    payload: bytes
    provenance: Provenance
    metrics: Mapping[str, float]
    metric: str
    seconds: float


class JobFolder:
    """The memory of one job: its request, the checkpoint of its fit, and small notes about each task."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """Where the fit keeps its checkpoint."""
        return self.path / "checkpoint"

    def require_same(self, request: Mapping[str, Any]) -> None:
        """Remember `request`, or check that it is what the job was begun with.

        Raises:
            InvalidInputError: the job was begun with another request; choose another name for this one.
        """
        data = canonical_json(dict(request))
        file = self.path / "request.json"
        if not file.exists():
            write_atomically(file, data)
            return
        begun = json.loads(file.read_bytes())
        differing = sorted(name for name in {*begun, *request} if begun.get(name) != json.loads(data).get(name))
        if differing:
            raise InvalidInputError(
                f"job {self.path.name} was begun with other {' and '.join(differing)} (see {file}); give this one "
                "another name"
            )

    def note(self, task: str, name: str) -> dict[str, Any] | None:
        """What was written down about a task under `name`.

        Raises:
            CorruptError: it cannot be read; delete the file that is named to do that part again.
        """
        file = self._file(task, f"{name}.json")
        if not file.exists():
            return None
        try:
            return dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CorruptError(f"{file} is damaged ({error}); delete it to do that part again") from error

    def write_note(self, task: str, name: str, value: Mapping[str, Any]) -> None:
        write_atomically(self._file(task, f"{name}.json"), canonical_json(dict(value)))

    def decision(self, task: str) -> Decision | None:
        """What was decided for `task`, if its fit has ended before. Raises CorruptError as `note`."""
        note = self.note(task, "decision")
        if note is None:
            return None
        payload = self._file(task, "prompt.safetensors").read_bytes()
        if sha256_hex(payload) != note.pop("payload"):
            raise CorruptError(f"{self._file(task, 'prompt.safetensors')} is damaged; delete {task}/decision.json")
        return Decision(payload=payload, provenance=Provenance.from_json(note.pop("provenance")), **note)

    def decide(self, task: str, decision: Decision) -> None:
        """Write down what is about to be published."""
        write_atomically(self._file(task, "prompt.safetensors"), decision.payload)
        note = {
            "payload": sha256_hex(decision.payload),
            "provenance": decision.provenance.to_json(),
            "metrics": dict(decision.metrics),
            "metric": decision.metric,
            "seconds": decision.seconds,
        }
        self.write_note(task, "decision", note)

    def _file(self, task: str, name: str) -> Path:
        return self.path / "tasks" / task / name


@contextmanager
def job_folder(parent: Path, job: str) -> Iterator[JobFolder]:
    """The folder of `job`, held by this process alone.

    Raises:
        ConflictError: the same job is running in another process on this machine; wait for it, or name another job.
    """
    check_name(job, "job name")
    folder = parent / job
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise ConflictError(
                f"job {job} is running already, in process {lock.read().strip() or '?'}; wait for it, or give this one "
                "another name"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield JobFolder(folder)
