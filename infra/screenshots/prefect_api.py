"""Runs of deployments, started and followed through Prefect's API."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from promptstore.errors import PromptStoreError

POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class PrefectApi:
    """url: the one that ends in /api."""

    url: str

    def start(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Ask for a run of `flow/deployment`; the run's id."""
        found = self._call("GET", f"/deployments/name/{deployment}")
        body = {"parameters": {"parameters": parameters}, "state": {"type": "SCHEDULED"}}
        return str(self._call("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def wait(self, run: str, state: str, *, timeout_s: float) -> None:
        """Return once the run is in `state`: COMPLETED, PAUSED, …

        Raises:
            PromptStoreError: it ended in another state, or did not get there in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self._call("GET", f"/flow_runs/{run}")
            now = found["state"]["type"]
            if now == state:
                return
            if now in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} or time.monotonic() > deadline:
                raise PromptStoreError(
                    f"run {found['name']!r} is {now}, not {state}: {found['state'].get('message') or 'no message'}"
                )
            time.sleep(POLL_S)

    def artifact(self, run: str, key: str) -> str:
        """The id of the artifact that the run left under `key`."""
        asked = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}}
        (found,) = self._call("POST", "/artifacts/filter", asked)
        return str(found["id"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = httpx.request(method, self.url + path, json=body, timeout=60, trust_env=False)
        if answer.is_error:
            raise PromptStoreError(f"Prefect answered {method} {path} with {answer.status_code}: {answer.text[:300]}")
        return answer.json()
