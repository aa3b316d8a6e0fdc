"""Processes that outlive the command that starts them: found again by id and start time, ended with their children."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from promptstore.errors import InvalidInputError
from promptstore.store.files import write_atomically
from promptstore.testing.servers.process import group_of

MARK = "PROMPTSTORE_STACK"
PROC = Path("/proc")
ENDED = ("Z", "X")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process for good: its number is used again one day, together with boot and start time it never is."""

    pid: int
    boot: str
    started: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """None: there is no such process, or only its exit status is left."""
        entry = _read_entry(pid)
        return None if entry is None else cls(pid, _boot(), entry.started)

    @property
    def is_alive(self) -> bool:
        return ProcessId.of(self.pid) == self


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What `file` remembers of a started program. settings: a digest, to tell whether it was started as asked now."""

    process: ProcessId
    settings: str

    @classmethod
    def read(cls, file: Path) -> "ProcessRecord | None":
        try:
            held = json.loads(file.read_bytes())
            return cls(ProcessId(**held["process"]), held["settings"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"{file} is no record of a process ({error}); end it by hand, then delete it"
            ) from error

    def write(self, file: Path) -> None:
        write_atomically(file, json.dumps(asdict(self)).encode() + b"\n")


def start(
    command: Sequence[str], *, environment: Mapping[str, str], mark: str, log: Path, user: str | None = None
) -> ProcessId:
    """Start a program in a session of its own, so that neither Ctrl-C nor the end of this process reaches it.

    mark: put into its environment, and so into that of everything it starts.

    Raises:
        InvalidInputError: it ended at once.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env={**environment, MARK: mark},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=group_of(user),
            extra_groups=[] if user else None,
        )
    started = ProcessId.of(child.pid)
    if started is None:
        raise InvalidInputError(f"{command[0]} ended at once; its log is {log}")
    return started


def stop(leader: ProcessId | None, mark: str, *, by: signal.Signals, patience_s: float) -> None:
    """End a program, then whatever is left of what it started: politely at first, by force after `patience_s`."""
    if leader is not None and leader.is_alive:
        family = [leader, *_descendants(leader.pid)]
        _send([leader], by)
        _wait_until(lambda: not leader.is_alive, patience_s)
    else:
        family = []
    for signalled, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        left = [each for each in {*family, *_marked(mark)} if each.is_alive]
        if not left:
            return
        _send(left, signalled)
        _wait_until(lambda left=left: not any(each.is_alive for each in left), wait_s)  # type: ignore[misc]


def wait_until_reaped(pid: int, wait_s: float) -> None:
    """Return once the parent of an ended process took note of its end, which the init of some machines does late.

    Until then its number looks alive to others: PostgreSQL does not start while its lock file names such a one.
    """
    with suppress(ChildProcessError):  # somebody else's
        os.waitpid(pid, os.WNOHANG)
    _wait_until(lambda: _stat(pid)[0] not in ENDED, wait_s)


def running(mark: str) -> list[ProcessId]:
    """Every live process that carries the mark."""
    return list(_marked(mark))


@dataclass(frozen=True, slots=True)
class _Entry:
    parent: int
    started: int


def _read_entry(pid: int) -> _Entry | None:
    state, *others = _stat(pid)
    return None if state in {"", *ENDED} else _Entry(int(others[0]), int(others[18]))


def _stat(pid: int) -> list[str]:
    """proc(5): the name in parentheses may hold anything; state is field 3, parent 4, start time 22."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""]


def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _entries() -> Iterator[tuple[int, _Entry]]:
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and (entry := _read_entry(int(folder.name))):
            yield int(folder.name), entry


def _descendants(pid: int) -> list[ProcessId]:
    entries = dict(_entries())
    found, boot = [pid], _boot()
    for parent in found:
        found += [each for each, entry in entries.items() if entry.parent == parent and each not in found]
    return [ProcessId(each, boot, entries[each].started) for each in found[1:]]


def _marked(mark: str) -> Iterator[ProcessId]:
    """Processes of others cannot be looked into, nor be ours."""
    wanted, boot = f"{MARK}={mark}".encode(), _boot()
    for pid, entry in _entries():
        try:
            if wanted in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                yield ProcessId(pid, boot, entry.started)
        except OSError:
            continue


def _send(processes: Sequence[ProcessId], wanted: signal.Signals) -> None:
    for each in processes:
        try:
            if each.is_alive:
                os.kill(each.pid, wanted)
        except ProcessLookupError:
            continue


def _wait_until(is_done: Callable[[], bool], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.05)
