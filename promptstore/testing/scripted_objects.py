"""An object store that misbehaves on request, around one that does not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from threading import Lock

from promptstore.errors import CommitOutcomeUnknownError, StoreUnavailableError
from promptstore.store.objects import ObjectInfo, ObjectStore


class Fault(Enum):
    """What goes wrong in one call.

    UNAVAILABLE: it fails and changes nothing.
    LOST: it takes effect and its answer is lost; for a read, the same as UNAVAILABLE.
    LATE: the caller is told nothing and it takes effect later, at `ScriptedObjects.deliver`.
    DENIED: a creation takes effect but is answered "exists already", as when a client repeated it unasked.
    CORRUPT, TRUNCATED: a read answers with other bytes than are stored.
    CRASH_BEFORE, CRASH_AFTER: the process ends there.
    """

    UNAVAILABLE = "unavailable"
    LOST = "lost"
    LATE = "late"
    DENIED = "denied"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


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


class ScriptedObjects:
    """Keeps the port's contract but for what `script` says of a call; `calls` lists every call made."""

    def __init__(self, objects: ObjectStore, script: Callable[[Call], Fault | None] = behave) -> None:
        self._objects = objects
        self.script = script
        self.calls: list[Call] = []
        self._late: list[tuple[str, bytes]] = []
        self._lock = Lock()

    @property
    def url(self) -> str:
        return self._objects.url

    def get(self, key: str) -> bytes:
        fault = self._begin("get", key)
        data = self._objects.get(key)
        self._end(fault, f"get {key}")
        if fault is Fault.CORRUPT and data:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data[: len(data) // 2] if fault is Fault.TRUNCATED else data

    def put(self, key: str, data: bytes) -> None:
        fault = self._begin("put", key)
        self._objects.put(key, data)
        self._end(fault, f"put {key}")

    def put_if_absent(self, key: str, data: bytes) -> bool:
        fault = self._begin("put_if_absent", key)
        if fault is Fault.LATE:
            self._late.append((key, data))
            raise CommitOutcomeUnknownError(f"no answer to the creation of {key}")
        is_created = self._objects.put_if_absent(key, data)
        if fault is Fault.LOST:
            raise CommitOutcomeUnknownError(f"no answer to the creation of {key}")
        self._end(fault, f"creation of {key}")
        return is_created and fault is not Fault.DENIED

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        fault = self._begin("list", prefix)
        found = list(self._objects.list(prefix, start_after=start_after))
        self._end(fault, f"list {prefix}")
        return iter(found)

    def delete(self, key: str) -> None:
        fault = self._begin("delete", key)
        self._objects.delete(key)
        self._end(fault, f"delete {key}")

    def deliver(self) -> None:
        """Let creations that were on their way (Fault.LATE) arrive now."""
        while self._late:
            self._objects.put_if_absent(*self._late.pop(0))

    def _begin(self, verb: str, key: str) -> Fault | None:
        with self._lock:
            call = Call(len(self.calls), verb, key)
            self.calls.append(call)
        fault = self.script(call)
        if fault is Fault.CRASH_BEFORE:
            raise CrashError(f"before {call}")
        if fault is Fault.UNAVAILABLE:
            raise StoreUnavailableError(f"{verb} {key}: 503 slow down")
        return fault

    def _end(self, fault: Fault | None, what: str) -> None:
        if fault is Fault.CRASH_AFTER:
            raise CrashError(f"after {what}")
        if fault is Fault.LOST:
            raise StoreUnavailableError(f"no answer to {what}")
