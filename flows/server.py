"""A Prefect server of one's own, as a child process: for tests, notebooks and one machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows.environment import api_url, client_environment, server_environment
from promptstore.errors import PromptStoreError
from promptstore.loopback import free_port, loopback_client

STOPS_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """A server that answers. home: its folder; pid: of the process to stop or kill."""

    port: int
    home: Path
    pid: int

    @property
    def api_url(self) -> str:
        return api_url(self.port)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to run flows against this server."""
        return client_environment(self.home, self.port)


@contextmanager
def prefect_server(
    home: Path, *, port: int | None = None, database: str | None = None, timeout_s: float = 120.0
) -> Iterator[PrefectServer]:
    """A running server; stopped at the end. home: kept, so the same server can be started again.

    Raises:
        PromptStoreError: it ended, or did not answer in time; the message has the end of its log.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = home / "server.log"
    arguments = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            env={**os.environ, **server_environment(home, port, database=database)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, port, log, timeout_s)
        yield PrefectServer(port, home, process.pid)
    finally:
        _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with loopback_client(2.0) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PromptStoreError(f"the Prefect server ended before it was ready:\n{_tail(log)}")
            try:
                if client.get(f"{api_url(port)}/health").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise PromptStoreError(f"the Prefect server did not answer within {timeout_s:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, wanted)
        except ProcessLookupError:
            return
        try:
            process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            continue
        return
