"""A cold start equals a full fold, whatever the checkpoints are worth; and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest

from promptstore.core.digest import sha256_hex
from promptstore.core.fold import fold
from promptstore.core.operation import Publish
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.checkpoints import decode_hint, encode_checkpoint, encode_hint
from promptstore.store.following import read_commit
from promptstore.store.layout import CHECKPOINTS, HINT_KEY, checkpoint_key, commit_key
from promptstore.store.ledger import Ledger
from promptstore.testing.scripted_objects import Call, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, ticking_clock

LENGTH = 250
HINT = HINT_KEY
NEWEST, OLDER = checkpoint_key(200), checkpoint_key(100)


def grow(objects: ScriptedObjects | MemoryObjectStore, commits: int = LENGTH, *, tasks: int = 7) -> Ledger:
    ledger = Ledger.create(objects, actor="me", clock=ticking_clock(), patience=IMPATIENT)
    for count in range(commits):
        task = f"task-{count % tasks}"

        def build(state: StoreState, task: str = task) -> list[Publish]:
            number = len(state.tasks[task].versions) + 1 if task in state.tasks else 1
            return [Publish(task, number, f"{state.number:064x}", f"{state.number:064x}")]

        ledger.commit(build, reason="")
    return ledger


@pytest.fixture(scope="module")
def grown() -> tuple[MemoryObjectStore, StoreState]:
    objects = MemoryObjectStore()
    return objects, grow(objects).state


@pytest.fixture
def objects(grown: tuple[MemoryObjectStore, StoreState]) -> ScriptedObjects:
    """A fresh copy of the grown store."""
    copy = MemoryObjectStore()
    for info in grown[0].list(""):
        copy.put(info.key, grown[0].get(info.key))
    return ScriptedObjects(copy)


def cold_start(objects: ScriptedObjects) -> tuple[StoreState, int]:
    """The state of a new reader, and how many reads of commits it took."""
    objects.calls.clear()
    state = Ledger.open(objects, actor="reader", patience=IMPATIENT).state
    return state, sum(call.key.startswith("commits/") for call in objects.calls)


def test_every_hundredth_commit_leaves_a_checkpoint_and_a_hint(objects: ScriptedObjects) -> None:
    assert [info.key for info in objects.list(CHECKPOINTS)] == [OLDER, NEWEST, HINT]
    assert decode_hint(objects.get(HINT)) == 200


def test_no_commit_costs_more_than_two_calls() -> None:
    objects = ScriptedObjects(MemoryObjectStore())
    ledger = grow(objects, 99)
    most = 0
    for _ in range(10):
        objects.calls.clear()
        ledger.commit(
            lambda state: [
                Publish("x", len(state.tasks["x"].versions) + 1 if "x" in state.tasks else 1, "0" * 64, "0" * 64)
            ],
            reason="",
        )
        most = max(most, len(objects.calls))
    assert most == 2


def test_a_cold_start_reads_the_tail_alone(
    objects: ScriptedObjects, grown: tuple[MemoryObjectStore, StoreState]
) -> None:
    state, reads = cold_start(objects)
    assert state == grown[1]
    assert reads <= 1 + 50 + 16
    assert OLDER not in {call.key for call in objects.calls}


def test_a_cold_start_equals_a_full_fold(objects: ScriptedObjects, grown: tuple[MemoryObjectStore, StoreState]) -> None:
    ledger = Ledger.open(objects, actor="reader")
    assert fold(ledger.header.empty_state(), list(ledger.commits())) == ledger.state == grown[1]


def _flip(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


@pytest.mark.parametrize(
    ("damage", "longest_tail"),
    [
        (lambda objects: objects.delete(HINT), 50),
        (lambda objects: objects.put(HINT, b"nonsense"), 50),
        (lambda objects: objects.put(HINT, encode_hint(100)), 50),
        (lambda objects: objects.put(HINT, encode_hint(300)), 150),
        (lambda objects: objects.put(HINT, encode_hint(123)), 50),
        (lambda objects: objects.delete(NEWEST), 150),
        (lambda objects: objects.put(NEWEST, _flip(objects.get(NEWEST))), 150),
        (lambda objects: objects.put(NEWEST, objects.get(NEWEST)[:-5]), 150),
        (lambda objects: objects.put(NEWEST, b""), 150),
        (lambda objects: objects.put(NEWEST, objects.get(OLDER)), 150),
        (lambda objects: (objects.delete(NEWEST), objects.delete(OLDER)), 250),
        (lambda objects: [objects.delete(info.key) for info in list(objects.list(CHECKPOINTS))], 250),
        (lambda objects: objects.put(checkpoint_key(999_900), b"from another store"), 50),
    ],
    ids=[
        "no hint", "damaged hint", "stale hint", "hint at nothing", "hint at no checkpoint", "no checkpoint",
        "flipped bit", "truncated", "empty", "swapped", "none left", "folder empty", "foreign",
    ],
)  # fmt: skip
def test_bad_checkpoints_cost_time_and_nothing_else(
    objects: ScriptedObjects,
    grown: tuple[MemoryObjectStore, StoreState],
    damage: Callable[[ScriptedObjects], object],
    longest_tail: int,
) -> None:
    damage(objects)
    state, reads = cold_start(objects)
    assert state == grown[1]
    assert reads <= longest_tail + 3 + 16


def test_a_checkpoint_that_lies_is_not_believed_unless_the_log_names_it(objects: ScriptedObjects) -> None:
    """Somebody with a pen but without the log: rewrites the checkpoint so that a task disappears."""
    honest = Ledger.open(objects, actor="reader").state
    moment = datetime.fromisoformat(read_commit(objects, 200).at)
    middle = Ledger.open(objects, actor="reader").state_at(moment)
    assert middle.number == 200
    lie = StoreState(middle.store_id, 200, middle.digest, middle.at, middle.protected_aliases, {}, {})
    objects.put(NEWEST, encode_checkpoint(lie))
    assert Ledger.open(objects, actor="reader").state == honest


@pytest.mark.parametrize("bug", ["names the one before", "names a wrong digest"])
def test_a_checkpoint_of_another_commit_is_not_taken_even_if_the_log_names_it(
    objects: ScriptedObjects, bug: str
) -> None:
    """A writer with a bug made commit 201."""
    moment = datetime.fromisoformat(read_commit(objects, 200).at)
    state = Ledger.open(objects, actor="reader").state_at(moment)
    wrong = encode_checkpoint(replace(state, digest="0" * 64))
    checkpoint = objects.get(OLDER) if bug == "names the one before" else wrong
    for number in range(202, LENGTH + 1):
        objects.delete(commit_key(number))
    voucher = replace(read_commit(objects, 201), checkpoint=sha256_hex(checkpoint))
    objects.put(commit_key(201), voucher.to_bytes())
    objects.put(NEWEST, checkpoint)
    ledger = Ledger.open(objects, actor="reader")
    assert ledger.state.number == 201
    assert ledger.state == fold(ledger.header.empty_state(), list(ledger.commits()))


def test_a_store_that_cannot_take_checkpoints_still_takes_commits() -> None:
    def no_checkpoints(call: Call) -> Fault | None:
        return Fault.UNAVAILABLE if call.verb == "put" else None

    objects = ScriptedObjects(MemoryObjectStore(), no_checkpoints)
    ledger = grow(objects, 205)
    assert ledger.state.number == 205
    assert list(objects.list(CHECKPOINTS)) == []
    assert cold_start(objects)[0] == ledger.state


def test_a_gap_in_the_log_ends_it_for_readers_and_is_corrupt_for_the_next_commit(objects: ScriptedObjects) -> None:
    objects.delete(commit_key(240))
    ledger = Ledger.open(objects, actor="reader", patience=IMPATIENT)
    assert ledger.state.number == 239
    with pytest.raises(CorruptError, match="does not follow"):
        grow(objects, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda objects: objects.delete(NEWEST),
        lambda objects: objects.put(NEWEST, b"damaged"),
        lambda objects: objects.delete(HINT),
        lambda objects: objects.put(HINT, encode_hint(100)),
        lambda objects: [objects.delete(info.key) for info in list(objects.list(CHECKPOINTS))],
    ],
)
def test_a_checkpoint_that_its_writer_did_not_leave_is_mended(
    objects: ScriptedObjects, damage: Callable[[ScriptedObjects], object]
) -> None:
    good = {key: objects.get(key) for key in (NEWEST, HINT)}
    ledger = Ledger.open(objects, actor="upkeep")
    assert not ledger.mend_checkpoint()
    damage(objects)
    assert ledger.mend_checkpoint()
    assert {key: objects.get(key) for key in (NEWEST, HINT)} == good
    assert not ledger.mend_checkpoint()


def test_a_short_log_has_no_checkpoint_to_mend() -> None:
    assert not grow(ScriptedObjects(MemoryObjectStore()), 100).mend_checkpoint()
