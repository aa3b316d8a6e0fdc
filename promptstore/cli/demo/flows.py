"""How the demo runs a flow: as a process of its own that talks to the Prefect server."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.cli.demo.processes import READY_S, ChildProcess
from promptstore.errors import PromptStoreError

# Prefect's own words, tracebacks too, stay on its page.
PROGRESS_ALONE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}


@dataclass(frozen=True, slots=True)
class FlowRunner:
    """Runs flows by name.

    environment: the settings that the flows' processes get. folder: of their parameters, results and logs.
    wait_for_prefect: returns once the server answers; a flow's process opens what it needs meanwhile.
    """

    environment: Mapping[str, str]
    folder: Path
    wait_for_prefect: Callable[[], None]

    def run(self, flow: str, label: str, parameters: Mapping[str, Any]) -> Any:
        """The flow's result, as JSON. label: tells this run's files from those of others.

        Raises:
            PromptStoreError: the flow failed; the message says why.
        """
        return self.run_all(flow, {label: parameters})[label]

    def run_all(self, flow: str, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The results of runs that are at work at the same time, both by label; the first that fails ends the others.

        Raises:
            PromptStoreError: one failed; the message says why.
        """
        on_terminal = len(runs) == 1 and sys.stderr.isatty()
        with ExitStack() as stack:
            children = [
                stack.enter_context(self._child(flow, label, parameters, on_terminal=on_terminal))
                for label, parameters in runs.items()
            ]
            self.wait_for_prefect()
            for child in children:
                child.wait_until_ended()
        return {label: self._result(flow, label) for label in runs}

    def _child(self, flow: str, label: str, parameters: Mapping[str, Any], *, on_terminal: bool) -> ChildProcess:
        """on_terminal: its progress is shown, and nothing but that."""
        asked, answered, reason = self.folder / f"{label}.parameters.json", self._answer(label), self._reason(label)
        answered.unlink(missing_ok=True)
        reason.unlink(missing_ok=True)
        asked.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        files = {"--parameters": asked, "--result": answered, "--reason": reason, "--wait": READY_S}
        return ChildProcess(
            f"flow {flow}",
            ("-m", "flows", flow, *(str(part) for pair in files.items() for part in pair)),
            environment={**self.environment, **(PROGRESS_ALONE if on_terminal else {})},
            log_path=self.folder / f"{label}.log",
            reason_path=reason,
            on_terminal=on_terminal,
        )

    def _result(self, flow: str, label: str) -> Any:
        answered = self._answer(label)
        try:
            return json.loads(answered.read_bytes())
        except (OSError, ValueError) as error:
            raise PromptStoreError(f"flow {flow} ended well but left no result in {answered}: {error}") from error

    def _reason(self, label: str) -> Path:
        return self.folder / f"{label}.reason.txt"

    def _answer(self, label: str) -> Path:
        return self.folder / f"{label}.result.json"
