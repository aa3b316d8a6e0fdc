"""Flows in processes of their own, for tests."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Ended:
    """A flow that ran in a process of its own."""

    code: int
    result: Any
    error: str


@dataclass(frozen=True, slots=True)
class Started:
    """A flow that runs in a process of its own."""

    process: "subprocess.Popen[str]"
    answered: Path

    def wait(self, timeout_s: float = 300) -> Ended:
        _, error = self.process.communicate(timeout=timeout_s)
        result = json.loads(self.answered.read_bytes()) if self.answered.exists() else None
        return Ended(self.process.returncode, result, error)


@dataclass(frozen=True, slots=True)
class FlowRunner:
    """Runs flows as people do. folder: takes parameters and results; environment: of the flows' processes."""

    folder: Path
    environment: Mapping[str, str]

    def start(self, flow: str, **parameters: Any) -> Started:
        """Begin, and do not wait for the end."""
        number = len(list(self.folder.glob("*.parameters.json")))
        asked = self.folder / f"{number}.parameters.json"
        asked.write_text(json.dumps(parameters))
        answered = self.folder / f"{number}.result.json"
        arguments = [sys.executable, "-m", "flows", flow, "--parameters", str(asked), "--result", str(answered)]
        process = subprocess.Popen(
            arguments, env={**os.environ, **self.environment}, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        return Started(process, answered)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`python -m flows` with these arguments."""
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def run(self, flow: str, **parameters: Any) -> Ended:
        return self.start(flow, **parameters).wait()
