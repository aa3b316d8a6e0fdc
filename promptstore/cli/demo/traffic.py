"""Requests that never stop while the demo promotes: each answer's status and version is kept."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Self

import httpx

from promptstore.errors import PromptStoreError

VERSION_HEADER = "x-promptstore-version"
# Leaves the machine to the fit that runs beside.
PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Answered:
    """One request. status: of HTTP, 0 where there was no answer. version: as the answer's header says, or empty."""

    status: int
    version: str
    seconds: float


class Traffic:
    """One client that asks for one task's label again and again until the context closes."""

    def __init__(self, url: str, task: str, texts: Sequence[str]) -> None:
        self._url = url
        self._bodies = cycle([{"model": task, "input": text} for text in texts])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="demo traffic", daemon=True)
        self._answers: list[Answered] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=30)

    @property
    def answers(self) -> list[Answered]:
        return list(self._answers)

    @property
    def failed(self) -> int:
        return sum(answer.status != 200 for answer in self.answers)

    def require(self, version: str, *, timeout_s: float) -> None:
        """Return once an answer comes from `version`.

        Raises:
            PromptStoreError: none did in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._answers and self._answers[-1].version == version:
                return
            time.sleep(0.05)
        last = self._answers[-1] if self._answers else "no answer at all"
        raise PromptStoreError(f"the server did not answer with {version} within {timeout_s:.0f} s; last: {last}")

    def has_switched(self, before: str, after: str) -> bool:
        """Whether answers came first from `before`, then from `after`, without a request in between that failed."""
        versions = [answer.version for answer in self.answers]
        return before in versions and after in versions[versions.index(before) :] and self.failed == 0

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for body in self._bodies:
                if self._stopped.wait(PAUSE_S):
                    return
                started = time.monotonic()
                try:
                    answer = client.post("/v1/classify", json=body)
                    seen = Answered(answer.status_code, answer.headers.get(VERSION_HEADER, ""), 0.0)
                except httpx.HTTPError:
                    seen = Answered(0, "", 0.0)
                seconds = time.monotonic() - started
                self._answers.append(Answered(seen.status, seen.version, seconds))
