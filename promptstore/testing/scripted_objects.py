"""An object store that misbehaves on request, around one that does not."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from threading import Lock
from typing import TypeVar

from promptstore.errors import CommitOutcomeUnknownError, PromptStoreError, StoreUnavailableError
from promptstore.store.objects import ObjectInfo, ObjectStore

Result = TypeVar("Result")


class Fault(Enum):
    """What goes wrong in one call.

    UNAVAILABLE: it fails and changes nothing.
    LOST: it takes effect and its answer is lost; for a read, the same as UNAVAILABLE.
    LATE: the caller is told nothing and it takes effect later, at `ScriptedObjects.deliver`.
    DENIED: a creation takes effect but is answered "exists already", as when a client repeated it unasked.
    CORRUPT, TRUNCATED: a read answers with other bytes than are stored.
    CRASH_BEFORE, CRASH_AFTER: `CrashError` is raised, in place of the end of the process.
    KILL_BEFORE, KILL_AFTER: the process really ends there, by SIGKILL.
    """

    UNAVAILABLE = "unavailable"
    LOST = "lost"
    LATE = "late"
    DENIED = "denied"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"


class CrashError(BaseException):
    """Stands for the end of the process: nothing that handles errors handles it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the port. number: from 0, in order of arrival."""

    number: int
    verb: str
    key: str

    @property
    def writes(self) -> bool:
        return self.verb in {"put", "put_if_absent", "delete"}


def behave(call: Call) -> None:
    """The script of a store without faults."""
    _ = call


def nth(fault: Fault, number: int) -> Callable[[Call], Fault | None]:
    """The script in which `fault` befalls call `number` (from 0) and no other."""
    return lambda call: fault if call.number == number else None


class ScriptedObjects:
    """Keeps the port's contract but for what `script` says of a call; `calls` lists every call made.

    clock_offset: how far the store's clock is ahead of the clock of the store within.
    """

    def __init__(
        self,
        objects: ObjectStore,
        script: Callable[[Call], Fault | None] = behave,
        *,
        clock_offset: timedelta = timedelta(0),
    ) -> None:
        self._objects = objects
        self.script = script
        self.clock_offset = clock_offset
        self.calls: list[Call] = []
        self._late: list[Callable[[], object]] = []
        self._lock = Lock()

    @property
    def url(self) -> str:
        return self._objects.url

    @property
    def counts(self) -> Counter[str]:
        """How many calls of each verb were made."""
        return Counter(call.verb for call in self.calls)

    def get(self, key: str) -> bytes:
        call, fault = self._begin("get", key)
        try:
            data = self._objects.get(key)
        finally:  # "there is none" is an answer, too, and can be lost
            self._end(call, fault)
        if fault is Fault.CORRUPT and data:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data[: len(data) // 2] if fault is Fault.TRUNCATED else data

    def put(self, key: str, data: bytes) -> None:
        call, fault = self._begin("put", key)
        self._write(call, fault, lambda: self._objects.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        call, fault = self._begin("put_if_absent", key)
        is_created = self._write(
            call, fault, lambda: self._objects.put_if_absent(key, data), lost=CommitOutcomeUnknownError
        )
        return is_created and fault is not Fault.DENIED

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        call, fault = self._begin("list", prefix)
        found = list(self._objects.list(prefix, start_after=start_after))
        self._end(call, fault)
        return iter(replace(info, modified_at=info.modified_at + self.clock_offset) for info in found)

    def delete(self, key: str) -> None:
        call, fault = self._begin("delete", key)
        self._write(call, fault, lambda: self._objects.delete(key))

    def deliver(self) -> None:
        """Let writes that were on their way (Fault.LATE) arrive now."""
        while self._late:
            self._late.pop(0)()

    def _begin(self, verb: str, key: str) -> tuple[Call, Fault | None]:
        with self._lock:
            call = Call(len(self.calls), verb, key)
            self.calls.append(call)
        fault = self.script(call)
        _end_process(call, fault, crash=Fault.CRASH_BEFORE, kill=Fault.KILL_BEFORE)
        if fault is Fault.UNAVAILABLE:
            raise StoreUnavailableError(f"{verb} {key}: 503 slow down")
        return call, fault

    def _write(
        self,
        call: Call,
        fault: Fault | None,
        write: Callable[[], Result],
        lost: type[PromptStoreError] = StoreUnavailableError,
    ) -> Result:
        if fault is Fault.LATE:
            self._late.append(write)
            raise lost(f"no answer to {call.verb} {call.key}")
        result = write()
        self._end(call, fault, lost)
        return result

    def _end(self, call: Call, fault: Fault | None, lost: type[PromptStoreError] = StoreUnavailableError) -> None:
        _end_process(call, fault, crash=Fault.CRASH_AFTER, kill=Fault.KILL_AFTER)
        if fault is Fault.LOST:
            raise lost(f"no answer to {call.verb} {call.key}")


def _end_process(call: Call, fault: Fault | None, *, crash: Fault, kill: Fault) -> None:
    if fault is crash:
        raise CrashError(f"{crash.value} {call}")
    if fault is kill:
        os.kill(os.getpid(), signal.SIGKILL)
