"""How the demo runs a flow: as a process of its own that talks to the Prefect server."""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.cli.demo.processes import READY_S, ChildProcess
from promptstore.errors import PromptStoreError


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
            PromptStoreError: the flow failed; the message holds the end of its log.
        """
        return self.run_all(flow, {label: parameters})[label]

    def run_all(self, flow: str, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The results of runs that are at work at the same time, both by label; the first that fails ends the others.

        Raises:
            PromptStoreError: one failed; the message holds the end of its log.
        """
        with ExitStack() as stack:
            children = [
                stack.enter_context(self._child(flow, label, parameters, shows_progress=len(runs) == 1))
                for label, parameters in runs.items()
            ]
            self.wait_for_prefect()
            for child in children:
                child.wait_until_ended()
        return {label: self._result(flow, label) for label in runs}

    def _child(self, flow: str, label: str, parameters: Mapping[str, Any], *, shows_progress: bool) -> ChildProcess:
        asked, answered = self.folder / f"{label}.parameters.json", self._answer(label)
        answered.unlink(missing_ok=True)
        asked.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        return ChildProcess(
            f"flow {flow}",
            ("-m", "flows", flow, "--parameters", str(asked), "--result", str(answered), "--wait", f"{READY_S}"),
            environment=self.environment,
            log_path=self.folder / f"{label}.log",
            shows_progress=shows_progress,
        )

    def _result(self, flow: str, label: str) -> Any:
        answered = self._answer(label)
        try:
            return json.loads(answered.read_bytes())
        except (OSError, ValueError) as error:
            raise PromptStoreError(f"flow {flow} ended well but left no result in {answered}: {error}") from error

    def _answer(self, label: str) -> Path:
        return self.folder / f"{label}.result.json"
