"""One server of the stack: how it is started, known to be ready, and stopped."""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from infra.stack.place import StackPlace
from infra.stack.processes import ProcessId, ProcessRecord, running, start, stop, wait_until_reaped
from promptstore.errors import PromptStoreError
from promptstore.loopback import loopback_client

LOG_LINES = 15
REAPED_WITHIN_S = 30.0


def nothing() -> None:
    """For services that need no preparation."""


def answers(url: str) -> bool:
    try:
        with loopback_client(3.0) as client:
            return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass(frozen=True, slots=True)
class Service:
    """prepare: before its start, each time. is_ready: asked again and again. complete: once it answers, each time.

    environment: all of it. asked: the part of it that somebody chose; with the command it tells whether a running
    process is what would be started now.
    """

    name: str
    place: StackPlace
    address: str
    ports: Mapping[str, int]
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool]
    prepare: Callable[[], None] = nothing
    complete: Callable[[], None] = nothing
    asked: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_by: signal.Signals = signal.SIGTERM
    ready_within_s: float = 300.0
    stops_within_s: float = 30.0

    @property
    def process(self) -> ProcessId | None:
        """The process that an earlier `up` started, if it still runs."""
        record = self._record
        return record.process if record is not None and record.process.is_alive else None

    @property
    def is_as_asked(self) -> bool:
        """Whether what runs was started by the command, and with the settings, that are asked for now."""
        return self._record is not None and self._record.settings == self._settings

    def start(self) -> None:
        """Start it; `has_come` tells when it answers."""
        self.prepare()
        log = self.place.log(self.name)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        process = start(
            self.command,
            environment=self.environment,
            mark=self.place.mark(self.name),
            log=log,
            user=self.user,
        )
        ProcessRecord(process, self._settings).write(self.place.pid_file(self.name))

    def has_come(self, waited_s: float) -> bool:
        """Whether it answers, after so long a wait; completes it then, so do not ask again.

        Raises:
            PromptStoreError: it ended, or waited long enough; holds the end of its log.
        """
        if self.is_ready():
            self.complete()
            return True
        if self.process is None:
            raise PromptStoreError(f"{self.name} ended before it answered; {self._log_end()}")
        if waited_s > self.ready_within_s:
            raise PromptStoreError(f"{self.name} does not answer within {self.ready_within_s:g} s; {self._log_end()}")
        return False

    def stop(self) -> bool:
        """Whether anything of it still ran."""
        record, leader, mark = self._record, self.process, self.place.mark(self.name)
        was_running = leader is not None or bool(running(mark))
        stop(leader, mark, by=self.stop_by, patience_s=self.stops_within_s)
        if left := running(mark):
            pids = ", ".join(str(each.pid) for each in left)
            raise PromptStoreError(
                f"{self.name} cannot be ended: process {pids} goes on; see {self.place.log(self.name)}"
            )
        if record is not None:
            wait_until_reaped(record.process.pid, REAPED_WITHIN_S)
        self.place.pid_file(self.name).unlink(missing_ok=True)
        return was_running

    @property
    def _record(self) -> ProcessRecord | None:
        return ProcessRecord.read(self.place.pid_file(self.name))

    @property
    def _settings(self) -> str:
        asked = json.dumps([*self.command, sorted(self.asked.items())])
        return hashlib.sha256(asked.encode()).hexdigest()

    def _log_end(self) -> str:
        log = self.place.log(self.name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join([f"{log} ends with", *lines[-LOG_LINES:]])


def wait_for_all(services: Sequence[Service]) -> None:
    """Return once every one answers; the first that fails is told at once. Raises as `Service.has_come`."""
    began = time.monotonic()
    waiting = list(services)
    while waiting := [service for service in waiting if not service.has_come(time.monotonic() - began)]:
        time.sleep(0.2)
