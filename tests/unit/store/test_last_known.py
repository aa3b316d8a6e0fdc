"""What is kept of a store for a start without it, and what the ledger that is resumed from it makes sure of."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from promptstore.core.operation import Publish
from promptstore.core.state import StoreState
from promptstore.errors import NotFoundError, StoreUnavailableError, UntrustedError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.last_known import Known, LastKnown
from promptstore.store.layout import HEADER_KEY, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.memory import HeadMemory
from promptstore.store.objects import ObjectStore
from promptstore.testing.scripted_objects import Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT


@dataclass(slots=True)
class Clock:
    """Monotonic seconds; every look at it takes `step`."""

    now: float = 0.0
    step: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def ledger_of(commits: int, objects: ObjectStore | None = None) -> Ledger:
    ledger = Ledger.create(objects or MemoryObjectStore(), actor="me", patience=IMPATIENT)
    for _ in range(commits):
        publish(ledger)
    return ledger


def publish(ledger: Ledger) -> StoreState:
    number = len(ledger.state.tasks["a"].versions) + 1 if "a" in ledger.state.tasks else 1
    digest = f"{number:064x}"
    ledger.commit(lambda _: [Publish("a", number, digest, digest)], reason="why")
    return ledger.state


def kept(folder: Path, ledger: Ledger) -> Known:
    known = LastKnown(folder, ["s3://place"])
    known.save(ledger.header, ledger.state)
    found = known.load()
    assert found is not None
    return found


def resumed(objects: ObjectStore, known: Known, memory: HeadMemory | None = None) -> Ledger:
    return Ledger.resume(objects, known.header, known.state, actor="me", patience=IMPATIENT, memory=memory)


def test_what_was_saved_is_loaded_by_another_process(tmp_path: Path) -> None:
    ledger = ledger_of(3)
    LastKnown(tmp_path, ["s3://place"]).save(ledger.header, ledger.state)
    found = LastKnown(tmp_path, ["s3://place"]).load()
    assert found is not None
    assert (found.header, found.state.number, found.state.digest) == (ledger.header, 3, ledger.state.digest)
    assert dict(found.state.tasks) == dict(ledger.state.tasks)


def test_a_state_belongs_to_its_url_and_to_the_keys_it_was_trusted_by(tmp_path: Path) -> None:
    ledger = ledger_of(1)
    LastKnown(tmp_path, ["s3://place", "a", "b"]).save(ledger.header, ledger.state)
    assert LastKnown(tmp_path, ["s3://place", "a", "b"]).load() is not None
    assert LastKnown(tmp_path, ["s3://other", "a", "b"]).load() is None
    assert LastKnown(tmp_path, ["s3://place", "a"]).load() is None
    assert LastKnown(tmp_path, ["s3://place"]).load() is None


def test_the_file_says_when_the_store_was_last_seen(tmp_path: Path) -> None:
    ledger = ledger_of(1)
    known = LastKnown(tmp_path, ["s3://place"])
    known.save(ledger.header, ledger.state)
    (path,) = tmp_path.iterdir()
    os.utime(path, (1000.0, 1000.0))
    found = known.load()
    assert found is not None
    assert found.seen_at == 1000.0
    known.save(ledger.header, ledger.state)
    found = known.load()
    assert found is not None
    assert found.seen_at > 1000.0
    known.save(ledger.header, ledger.state, unseen_s=3600.0)
    again = known.load()
    assert again is not None
    assert 3590.0 < found.seen_at - again.seen_at < 3610.0


def test_a_state_that_takes_long_to_keep_is_kept_less_often(tmp_path: Path) -> None:
    ledger, clock = ledger_of(1), Clock(step=1.0)
    known = LastKnown(tmp_path, ["s3://place"], clock=clock)

    def number_after(passed_s: float) -> int:
        clock.now += passed_s
        known.save(ledger.header, publish(ledger))
        found = known.load()
        assert found is not None
        return found.state.number

    assert number_after(0) == 2
    assert number_after(150) == 2
    assert number_after(160) == 4


def test_damaged_bytes_are_nothing_that_is_known_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = ledger_of(3)
    known = LastKnown(tmp_path, ["s3://place"])
    known.save(ledger.header, ledger.state)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = known.load()
        # Of Zstandard's header a bit or two mean nothing.
        assert found is None or (found.header, dict(found.state.tasks)) == (ledger.header, dict(ledger.state.tasks))
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert known.load() is None
    assert "is of no use" in caplog.text


def test_a_disk_that_takes_nothing_is_logged_once_and_the_next_look_tries_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    ledger = ledger_of(1)
    known = LastKnown(tmp_path / "folder", ["s3://place"], clock=Clock())
    with caplog.at_level(logging.WARNING):
        known.save(ledger.header, ledger.state)
        known.save(ledger.header, ledger.state)
    assert caplog.text.count("is not remembered") == 1
    (tmp_path / "folder").unlink()
    known.save(ledger.header, ledger.state)
    assert known.load() is not None


def test_a_file_that_somebody_deleted_is_written_again(tmp_path: Path) -> None:
    ledger = ledger_of(1)
    known = LastKnown(tmp_path, ["s3://place"], clock=Clock())
    known.save(ledger.header, ledger.state)
    (path,) = tmp_path.iterdir()
    path.unlink()
    known.save(ledger.header, ledger.state)
    known.save(ledger.header, ledger.state)
    assert known.load() is not None


def test_a_resumed_ledger_asks_nobody_and_follows_the_log_when_it_can(tmp_path: Path) -> None:
    objects = ScriptedObjects(MemoryObjectStore())
    writer = ledger_of(2, objects)
    known = kept(tmp_path, writer)
    newest = publish(writer)
    objects.calls.clear()
    objects.script = lambda _: Fault.UNAVAILABLE
    ledger = resumed(objects, known)
    assert (ledger.state.number, objects.calls) == (2, [])
    with pytest.raises(StoreUnavailableError):
        ledger.refresh()
    objects.script = lambda _: None
    assert ledger.refresh().digest == newest.digest
    objects.calls.clear()
    ledger.refresh()
    assert [(call.verb, call.key) for call in objects.calls] == [("get", commit_key(4))]


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_resumed_ledger_refuses_a_store_that_is_another(tmp_path: Path, commits: int) -> None:
    known = kept(tmp_path, ledger_of(2))
    objects = MemoryObjectStore()
    ledger_of(commits, objects)
    ledger = resumed(objects, known)
    with pytest.raises(UntrustedError, match="is not the store that this machine last saw"):
        ledger.refresh()
    with pytest.raises(UntrustedError):
        publish(ledger)
    assert Ledger.open(objects, actor="me").state.number == commits
    assert ledger.state.number == 2


def test_a_resumed_ledger_refuses_a_log_that_went_back(tmp_path: Path) -> None:
    objects = MemoryObjectStore()
    known = kept(tmp_path, ledger_of(2, objects))
    objects.delete(commit_key(2))
    with pytest.raises(UntrustedError, match="rolled back"):
        publish(resumed(objects, known))
    objects.delete(HEADER_KEY)
    with pytest.raises(NotFoundError, match="holds no store"):
        resumed(objects, known).refresh()


def test_a_resumed_ledger_refuses_a_log_that_forked_after_what_was_kept(tmp_path: Path) -> None:
    objects, memory = MemoryObjectStore(), HeadMemory(tmp_path / "heads")
    writer = ledger_of(2, objects)
    known = kept(tmp_path / "known", writer)
    publish(writer)
    assert Ledger.open(objects, actor="another process", memory=memory).state.number == 3
    objects.delete(commit_key(3))
    fork = Ledger.open(objects, actor="somebody", patience=IMPATIENT)
    fork.commit(lambda _: [Publish("b", 1, f"{9:064x}", f"{9:064x}")], reason="fork")
    ledger = resumed(objects, known, memory)
    with pytest.raises(UntrustedError, match="rolled back or forked"):
        ledger.refresh()
    assert ledger.state.number == 2


def test_of_a_store_without_commits_nothing_is_kept(tmp_path: Path) -> None:
    ledger = ledger_of(0)
    known = LastKnown(tmp_path, ["s3://place"])
    known.save(ledger.header, ledger.state)
    assert known.load() is None
