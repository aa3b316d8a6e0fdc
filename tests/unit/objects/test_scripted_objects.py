"""That the double does what its script says: tests of the store rest on it."""

import multiprocessing
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from promptstore.errors import CommitOutcomeUnknownError, NotFoundError, StoreUnavailableError
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.testing.scripted_objects import CrashError, Fault, ScriptedObjects, nth

VERBS = ("put", "put_if_absent")
LOST = [("put", StoreUnavailableError), ("put_if_absent", CommitOutcomeUnknownError)]


@pytest.fixture
def within() -> MemoryObjectStore:
    return MemoryObjectStore()


def _write(store: ScriptedObjects, verb: str) -> None:
    if verb == "put":
        store.put("k", b"x")
    else:
        store.put_if_absent("k", b"x")


@pytest.mark.parametrize("verb", VERBS)
def test_unavailable_changes_nothing(within: MemoryObjectStore, verb: str) -> None:
    with pytest.raises(StoreUnavailableError):
        _write(ScriptedObjects(within, nth(Fault.UNAVAILABLE, 0)), verb)
    with pytest.raises(NotFoundError):
        within.get("k")


@pytest.mark.parametrize(("verb", "error"), LOST)
def test_a_lost_answer_took_effect(within: MemoryObjectStore, verb: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        _write(ScriptedObjects(within, nth(Fault.LOST, 0)), verb)
    assert within.get("k") == b"x"


@pytest.mark.parametrize(("verb", "error"), LOST)
def test_a_late_write_takes_effect_when_delivered(within: MemoryObjectStore, verb: str, error: type[Exception]) -> None:
    store = ScriptedObjects(within, nth(Fault.LATE, 0))
    with pytest.raises(error):
        _write(store, verb)
    with pytest.raises(NotFoundError):
        within.get("k")
    store.deliver()
    assert within.get("k") == b"x"


def test_a_denied_creation_happened(within: MemoryObjectStore) -> None:
    assert ScriptedObjects(within, nth(Fault.DENIED, 0)).put_if_absent("k", b"x") is False
    assert within.get("k") == b"x"


@pytest.mark.parametrize(("fault", "read"), [(Fault.CORRUPT, b"012345678\x38"), (Fault.TRUNCATED, b"01234")])
def test_a_read_gives_other_bytes_than_are_stored(within: MemoryObjectStore, fault: Fault, read: bytes) -> None:
    within.put("k", b"0123456789")
    assert ScriptedObjects(within, nth(fault, 0)).get("k") == read
    assert within.get("k") == b"0123456789"


@pytest.mark.parametrize(("fault", "is_written"), [(Fault.CRASH_BEFORE, False), (Fault.CRASH_AFTER, True)])
def test_a_crash_passes_every_handler_of_errors(within: MemoryObjectStore, fault: Fault, is_written: bool) -> None:
    with pytest.raises(CrashError):
        ScriptedObjects(within, nth(fault, 0)).put("k", b"x")
    assert [info.key for info in within.list("")] == ["k"] * is_written


@pytest.mark.parametrize(("fault", "keys"), [(Fault.KILL_BEFORE, ["0"]), (Fault.KILL_AFTER, ["0", "1"])])
def test_a_kill_ends_the_process_at_that_call(tmp_path: Path, fault: Fault, keys: list[str]) -> None:
    def work() -> None:
        store = ScriptedObjects(LocalObjectStore(tmp_path), nth(fault, 1))
        for number in range(5):
            store.put(str(number), b"x")

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [info.key for info in LocalObjectStore(tmp_path).list("")] == keys


def test_the_clock_of_the_store_can_be_off(within: MemoryObjectStore) -> None:
    store = ScriptedObjects(within, clock_offset=timedelta(days=1))
    store.put("k", b"x")
    (shifted,), (true,) = store.list(""), within.list("")
    assert shifted.modified_at - true.modified_at == timedelta(days=1)


def test_every_call_is_counted(within: MemoryObjectStore) -> None:
    store = ScriptedObjects(within)
    store.put("a", b"")
    store.put_if_absent("a", b"")
    store.get("a")
    list(store.list("a"))
    store.delete("a")
    store.delete("a")
    assert store.counts == {"put": 1, "put_if_absent": 1, "get": 1, "list": 1, "delete": 2}
    assert [call.number for call in store.calls] == list(range(6))
