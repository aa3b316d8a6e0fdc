"""The log: commits, races, lost answers, refusals."""

import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from promptstore.core.commit import Commit
from promptstore.core.operation import Expire, Operation, Publish
from promptstore.core.state import StoreState
from promptstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.layout import commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.testing.scripted_objects import Call, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, START, ticking_clock


def create(objects: ObjectStore, **options: Any) -> Ledger:
    return Ledger.create(objects, actor="me", **{"patience": IMPATIENT, **options})


def open_(objects: ObjectStore, **options: Any) -> Ledger:
    return Ledger.open(objects, actor="me", **{"patience": IMPATIENT, **options})


def next_version(state: StoreState) -> Sequence[Operation]:
    number = len(state.tasks["a"].versions) + 1 if "a" in state.tasks else 1
    return [Publish("a", number, f"{number:064x}", f"{number:064x}")]


def commit(ledger: Ledger, build: Callable[[StoreState], Sequence[Operation]] = next_version) -> Commit:
    made = ledger.commit(build, reason="why")
    assert made is not None
    return made


@pytest.fixture
def objects() -> ScriptedObjects:
    return ScriptedObjects(MemoryObjectStore())


def only(verb: str, key: str, *faults: Fault) -> Callable[[Call], Fault | None]:
    """A script that meets the calls of one verb and key with `faults`, one after the other, then behaves."""
    left = list(faults)
    return lambda call: left.pop(0) if left and (call.verb, call.key) == (verb, key) else None


def verbs(objects: ScriptedObjects) -> list[tuple[str, str]]:
    return [(call.verb, call.key) for call in objects.calls]


def test_a_place_without_a_store_says_so(objects: ScriptedObjects) -> None:
    with pytest.raises(NotFoundError, match="holds no store"):
        open_(objects)


def test_creating_a_store_again_opens_it(objects: ScriptedObjects) -> None:
    first = create(objects)
    commit(first)
    again = create(objects)
    assert again.header == first.header
    assert again.state == first.state


def test_the_chain_begins_at_store_json(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    one, two = commit(ledger), commit(ledger)
    assert one.parent == ledger.header.digest
    assert two.parent == one.digest
    assert [each.number for each in ledger.commits()] == [1, 2]


def test_a_commit_on_a_fresh_state_is_one_call(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    objects.calls.clear()
    commit(ledger)
    assert verbs(objects) == [("put_if_absent", commit_key(1))]


def test_asking_for_news_is_one_get_whatever_the_history(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    for _ in range(30):
        commit(ledger)
    objects.calls.clear()
    ledger.refresh()
    assert verbs(objects) == [("get", commit_key(31))]


def test_a_reader_follows_what_others_commit(objects: ScriptedObjects) -> None:
    writer, reader = create(objects), open_(objects)
    for _ in range(40):
        commit(writer)
    assert reader.state.number == 0
    assert reader.refresh() == writer.state
    assert reader.state == writer.state


def test_a_build_that_makes_nothing_commits_nothing_after_looking_again(objects: ScriptedObjects) -> None:
    writer, other = create(objects), open_(objects)
    commit(other)
    seen: list[int] = []

    def build(state: StoreState) -> Sequence[Operation]:
        seen.append(state.number)
        return []

    assert writer.commit(build, reason="") is None
    assert seen == [0, 1]


def test_a_refusal_is_about_the_newest_state(objects: ScriptedObjects) -> None:
    """A stale writer must not be told that a version which exists does not."""
    writer, other = create(objects), open_(objects)
    commit(other)
    commit(writer, lambda _: [Expire("a", 1)])
    with pytest.raises(NotFoundError):
        commit(writer, lambda _: [Expire("a", 2)])


def test_a_lost_race_is_rebased_on_the_winner(objects: ScriptedObjects) -> None:
    writer, other = create(objects), open_(objects)
    commit(other)
    commit(other)
    made = commit(writer)
    assert made.number == 3
    assert made.operations == (Publish("a", 3, f"{3:064x}", f"{3:064x}"),)


def test_losing_every_race_ends_in_a_conflict() -> None:
    memory = MemoryObjectStore()
    other = create(memory)

    def somebody_is_always_first(call: Call) -> Fault | None:
        if call.verb == "put_if_absent" and call.key.startswith("commits/"):
            commit(other)
        return None

    objects = ScriptedObjects(memory, somebody_is_always_first)
    writer = open_(objects, patience=IMPATIENT.__class__(race_tries=5, sleep=lambda _: None))
    with pytest.raises(ConflictError, match="lost 5 races"):
        commit(writer)
    assert len(other.refresh().task("a").versions) == 5


@pytest.mark.parametrize(
    "faults",
    [
        (Fault.LOST,),
        (Fault.DENIED,),
        (Fault.UNAVAILABLE,),
        (Fault.UNAVAILABLE, Fault.LOST),
        (Fault.LATE, Fault.UNAVAILABLE, Fault.LATE),
        (Fault.LATE, Fault.LOST),
    ],
)
def test_a_commit_whose_answer_was_lost_is_there_exactly_once(
    objects: ScriptedObjects, faults: tuple[Fault, ...]
) -> None:
    ledger = create(objects)
    objects.script = only("put_if_absent", commit_key(1), *faults)
    made = commit(ledger)
    objects.deliver()
    assert [each.id for each in open_(objects).commits()] == [made.id]


def test_reading_back_survives_faults_too(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    left = {"put_if_absent": [Fault.LOST], "get": [Fault.UNAVAILABLE, Fault.TRUNCATED, Fault.CORRUPT]}
    objects.script = lambda call: left[call.verb].pop(0) if left.get(call.verb) else None
    made = commit(ledger)
    assert not any(left.values())
    assert [each.id for each in open_(objects).commits()] == [made.id]


def test_a_late_write_that_loses_its_number_is_not_taken_for_ours() -> None:
    memory = MemoryObjectStore()
    other = create(memory)
    objects = ScriptedObjects(memory)
    ledger = open_(objects)

    def another_writer_slips_in(call: Call) -> Fault | None:
        if call.verb == "put_if_absent" and not any(each.verb == "put_if_absent" for each in objects.calls[:-1]):
            return None  # the probe
        if call.verb == "put_if_absent" and other.state.number == 0:
            commit(other)
            return Fault.LATE
        return None

    objects.script = another_writer_slips_in
    made = commit(ledger)
    objects.deliver()
    assert made.number == 2
    assert [each.number for each in open_(memory).commits()] == [1, 2]


def test_an_outcome_that_cannot_be_learnt_is_said_to_be_unknown_and_repeating_is_safe(
    objects: ScriptedObjects,
) -> None:
    ledger = create(objects)
    objects.script = lambda call: Fault.LATE if call.verb == "put_if_absent" else None
    with pytest.raises(CommitOutcomeUnknownError, match="repeating is safe"):
        commit(ledger)
    objects.script = lambda _: None
    objects.deliver()

    def once(state: StoreState) -> Sequence[Operation]:
        return [] if state.tasks else next_version(state)

    assert ledger.commit(once, reason="") is None
    assert ledger.state.number == 1


def test_an_answer_that_may_mean_ours_is_not_called_a_failure(objects: ScriptedObjects) -> None:
    """Created, answered "exists already", and then nothing can be read: to say "nothing changed" would be a lie."""
    ledger = create(objects)

    def denied_then_dark(call: Call) -> Fault | None:
        return Fault.UNAVAILABLE if call.verb == "get" else Fault.DENIED

    objects.script = denied_then_dark
    with pytest.raises(CommitOutcomeUnknownError):
        commit(ledger)
    objects.script = lambda _: None
    assert ledger.refresh().number == 1


def test_what_a_ledger_knows_never_goes_back_while_threads_share_it(objects: ScriptedObjects) -> None:
    writer, shared = create(objects), open_(objects)
    commit(writer)
    seen: list[int] = []

    def another_thread_is_faster(call: Call) -> None:
        seen.append(shared.state.number)
        if call.key == commit_key(1):
            objects.script = lambda _: None
            for _ in range(3):
                commit(writer)
            seen.append(shared.refresh().number)
            objects.script = another_thread_is_faster

    objects.script = another_thread_is_faster
    shared.refresh()
    assert seen[-1] == 4
    assert seen == sorted(seen)


def test_a_commit_that_surely_did_not_happen_says_so(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    objects.script = lambda call: Fault.UNAVAILABLE if call.verb == "put_if_absent" else None
    with pytest.raises(StoreUnavailableError, match="was not made"):
        commit(ledger)
    objects.script = lambda _: None
    assert ledger.refresh().number == 0


def test_time_in_the_log_never_goes_back(objects: ScriptedObjects) -> None:
    ahead = create(objects, clock=lambda: START + timedelta(days=1))
    behind = open_(objects, clock=lambda: START)
    first, second = commit(ahead), commit(behind)
    assert first.at == second.at == "2026-01-02T00:00:00.000000Z"


class _Careless(MemoryObjectStore):
    """A store that overwrites what it was told only to create."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_a_store_that_ignores_create_only_writes_is_refused_and_unharmed() -> None:
    objects = _Careless()
    with pytest.raises(UnsupportedStoreError, match="ignores create-only"):
        create(objects)
    before = {info.key: objects.get(info.key) for info in objects.list("")}
    with pytest.raises(UnsupportedStoreError):
        commit(open_(objects))
    assert {info.key: objects.get(info.key) for info in objects.list("")} == before


def test_a_reader_does_not_write(objects: ScriptedObjects) -> None:
    commit(create(objects))
    objects.calls.clear()
    reader = open_(objects)
    reader.refresh()
    list(reader.commits())
    assert not [call for call in objects.calls if call.writes]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data.replace(b"why", b"who"), lambda _: b""])
def test_a_damaged_commit_is_corrupt_for_readers_and_writers(
    objects: ScriptedObjects, damage: Callable[[bytes], bytes]
) -> None:
    ledger = create(objects)
    reader = open_(objects)
    commit(ledger)
    objects.put(commit_key(1), damage(objects.get(commit_key(1))))
    with pytest.raises(CorruptError, match="commit 1"):
        reader.refresh()
    with pytest.raises(CorruptError, match="commit 1"):
        commit(reader)
    with pytest.raises(CorruptError, match="commit 1"):
        open_(objects)


def test_a_rewritten_history_does_not_chain(objects: ScriptedObjects) -> None:
    ledger = create(objects, clock=ticking_clock())
    commit(ledger)
    commit(ledger)
    forged = Commit(1, "forged", ledger.header.digest, "2026-01-01T00:00:00.000000Z", "x", "", ())
    objects.put(commit_key(1), forged.to_bytes())
    with pytest.raises(CorruptError, match="does not follow"):
        open_(objects)
    with pytest.raises(CorruptError, match="does not follow"):
        list(ledger.commits())


@pytest.mark.parametrize(
    "operation",
    [Publish("Not A Name", 1, "0" * 64, "0" * 64), Publish("a", 1, "short", "0" * 64)],
)
def test_nothing_is_written_that_a_reader_would_refuse(objects: ScriptedObjects, operation: Operation) -> None:
    ledger = create(objects)
    with pytest.raises(InvalidInputError, match="no reader would accept"):
        commit(ledger, lambda _: [operation])
    assert list(ledger.commits()) == []


def test_a_commit_too_large_to_read_is_refused(objects: ScriptedObjects) -> None:
    ledger = create(objects)
    with pytest.raises(InvalidInputError, match="split it"):
        ledger.commit(next_version, reason="x" * (9 << 20))


def test_ids_and_times_come_from_outside(objects: ScriptedObjects) -> None:
    ids = itertools.count()
    ledger = create(objects, new_id=lambda: f"id{next(ids)}", clock=lambda: datetime(2026, 5, 1, tzinfo=UTC))
    made = commit(ledger)
    assert (ledger.header.id, made.id, made.at) == ("id0", "id1", "2026-05-01T00:00:00.000000Z")
