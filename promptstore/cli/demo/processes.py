"""Child processes of the demo: started in sessions of their own, always stopped, their output kept in a file."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from promptstore.errors import PromptStoreError
from promptstore.loopback import loopback_client

READY_S = 180.0
STOP_AFTER_S = 10.0


class ChildProcess:
    """A program that runs while the context is open, and no longer.

    log_path: takes its standard output and error. on_terminal: its standard error goes to ours instead.
    reason_path: where it says why it failed; the end of its log says it otherwise.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        reason_path: Path | None = None,
        on_terminal: bool = False,
    ) -> None:
        self._name = name
        self._arguments = [sys.executable, *arguments]
        self._environment = {**os.environ, **environment}
        self._log_path = log_path
        self._reason_path = reason_path
        self._stderr = None if on_terminal else subprocess.STDOUT
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=self._stderr,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            stop_group(self._process)

    def wait_until_ended(self) -> None:
        """Return once it ended well.

        Raises:
            PromptStoreError: it failed; the message says why.
        """
        code = self._process.wait() if self._process is not None else None
        if code != 0:
            told = self._reason_path if self._reason_path and self._reason_path.exists() else self._log_path
            lines = told.read_text(errors="replace").splitlines() or ["no output"]
            cause = lines[-1].removeprefix("error: ")
            raise PromptStoreError(
                f"{self._name} failed: {cause} (exit code {code}; the whole output is in {self._log_path})"
            )

    def wait_until_ready(self, url: str, *, timeout_s: float = READY_S) -> None:
        """Return once `url` answers 200.

        Raises:
            PromptStoreError: the process ended, or did not answer in time; the message holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        with loopback_client(2.0) as client:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    raise PromptStoreError(f"{self._name} ended before it was ready:\n{self._log_tail()}")
                try:
                    if client.get(url).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.2)
        raise PromptStoreError(f"{self._name} did not answer at {url} within {timeout_s:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything it started: politely, then for good."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, wanted)
        try:
            process.wait(timeout=STOP_AFTER_S)
            break
        except subprocess.TimeoutExpired:
            continue
