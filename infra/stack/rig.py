"""The local stack as tests drive it: its own command, a shell that sourced its env.sh, and its processes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.stack.environment import client_variables
from infra.stack.place import StackPlace, StackSettings
from infra.stack.processes import ProcessId, ProcessRecord, running
from promptstore.testing.job_place import write_tiny_model
from promptstore.testing.servers import postgres_programs

ROOT = Path(__file__).parents[2]
SERVICES = ("postgres", "s3", "mlflow", "prefect", "server", "worker", "announcer")


@dataclass(frozen=True)
class StackRig:
    place: StackPlace
    model: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "infra.stack", *arguments, "--folder", str(self.place.folder)]
        environment = {**os.environ, "PROMPTSTORE_MODEL": str(self.model), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
        )

    def up(self) -> None:
        """Start it, or what is missing of it, on ports that are free."""
        done = self.run("up", "--free-ports")
        if done.returncode != 0:
            raise RuntimeError(f"the stack does not come up: {done.stderr}")

    def shell(self, script: str) -> str:
        """What a shell that sourced env.sh, and has nothing else of this process, prints."""
        lines = f"set -euo pipefail\nsource {shlex.quote(str(self.place.environment_file))}\n{script}"
        clean = {"PATH": os.defpath, "HOME": str(self.place.folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-c", lines], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{script}: {done.stderr}")
        return done.stdout

    @property
    def settings(self) -> StackSettings:
        settings = StackSettings.read(self.place)
        if settings is None:
            raise RuntimeError("the stack was never up")
        return settings

    @property
    def variables(self) -> dict[str, str]:
        """For processes that work on the stack."""
        return {**client_variables(self.place, self.settings), "PROMPTSTORE_MODEL": str(self.model)}

    @property
    def processes(self) -> dict[str, list[ProcessId]]:
        """Everything that runs of each service, children included."""
        return {name: running(self.place.mark(name)) for name in SERVICES}

    def leader(self, service: str) -> ProcessId:
        record = ProcessRecord.read(self.place.pid_file(service))
        if record is None:
            raise RuntimeError(f"{service} was never started")
        return record.process

    def answered_version(self, task: str) -> int:
        """Of an answer by the replica, once it has followed the log far enough to give one."""
        for _ in range(100):
            if answer := self.shell(f"promptstore ask {task} 'a good film' --json || true"):
                return int(str(json.loads(answer)["version"]).rpartition(":")[2])
            time.sleep(0.5)
        raise RuntimeError(f"the replica never served {task}")


@contextmanager
def stack_rig() -> Iterator[StackRig]:
    """A stack in a folder of its own with a tiny base model, down at first and at the end.

    Raises:
        MissingServerError: PostgreSQL is not installed.
    """
    postgres_programs()
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    folder.chmod(0o711)  # PostgreSQL's own user must get there
    rig = StackRig(StackPlace(folder / "stack"), write_tiny_model(folder / "model"))
    try:
        yield rig
    finally:
        rig.run("down")
        shutil.rmtree(folder, ignore_errors=True)
