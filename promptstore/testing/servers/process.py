"""A server as a child process: its log, its readiness and its end."""

import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class MissingServerError(Exception):
    """The server's program is not installed on this machine."""


class ServerProcess:
    """A started program; `stop` ends it and waits. Everything it says goes to `log`.

    It is also killed when this process dies, so that a killed test run leaves nothing behind (on Linux).
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.log = log
        self._name = Path(arguments[0]).name
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*_dies_with_parent(), *(str(each) for each in arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=environment,
                user=user,
                group=group_of(user),
                extra_groups=[] if user else None,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
        """Return once `is_ready`; it may raise OSError meanwhile.

        Raises:
            RuntimeError: the program ended, or is not ready in time; holds the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise RuntimeError(f"{self._name} ended with {self._child.returncode}:\n{self.log_tail()}")
            try:
                if is_ready():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{self._name} is not ready after {timeout_s:g} s:\n{self.log_tail()}")

    def stop(self, *, by: signal.Signals = signal.SIGTERM, wait_s: float = 10.0) -> None:
        """End the program, by force if it takes longer than `wait_s`."""
        if self._child.poll() is None:
            self._child.send_signal(by)
        try:
            self._child.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def group_of(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def program(name: str, install: str) -> Path:
    """The path of a program of this environment or of the machine.

    Raises:
        MissingServerError: there is none; says how to `install` it.
    """
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise MissingServerError(f"{name} is not installed: {install}")
    return Path(found)


def _dies_with_parent() -> list[str]:
    """What runs a program so that the kernel kills it with its parent; nothing where there is no such program."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
