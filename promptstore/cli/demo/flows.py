"""How the demo runs a flow: as a process of its own that talks to the Prefect server."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.cli.demo.processes import run_child
from promptstore.errors import PromptStoreError


@dataclass(frozen=True, slots=True)
class FlowRunner:
    """Runs flows by name. environment: the settings that the flows' processes get."""

    environment: Mapping[str, str]
    folder: Path

    def run(self, flow: str, label: str, parameters: Mapping[str, Any]) -> Any:
        """The flow's result, as JSON. label: tells this run's files from those of others.

        Raises:
            PromptStoreError: the flow failed; the message holds the end of its log.
        """
        asked = self.folder / f"{label}.parameters.json"
        answered = self.folder / f"{label}.result.json"
        answered.unlink(missing_ok=True)
        asked.write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        run_child(
            f"flow {flow}",
            ("-m", "flows", flow, "--parameters", str(asked), "--result", str(answered)),
            environment=self.environment,
            log_path=self.folder / f"{label}.log",
        )
        try:
            return json.loads(answered.read_bytes())
        except (OSError, ValueError) as error:
            raise PromptStoreError(f"flow {flow} ended well but left no result in {answered}: {error}") from error
