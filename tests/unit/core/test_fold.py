"""What a log means, and what no writer may do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstore.core.checkpoint import checkpoint_from_bytes, checkpoint_to_bytes
from promptstore.core.commit import Commit
from promptstore.core.fold import check, fold, needed_digests
from promptstore.core.header import StoreHeader
from promptstore.core.operation import Attest, Condemn, DeleteAlias, Expire, MoveAlias, Operation, Publish
from promptstore.core.ref import PromptRef
from promptstore.core.state import StoreState
from promptstore.errors import ConflictError, CorruptError, NotFoundError, PromptStoreError, RefusedError

HEADER = StoreHeader("test", "2026-01-01T00:00:00.000000Z")
PASS = Attest("a", 1, "gate", {"verdict": "pass"})


def digest(number: int) -> str:
    return f"{number:064x}"


def publish(number: int, task: str = "a") -> Publish:
    return Publish(task, number, digest(number), digest(1000 + number))


def commit(state: StoreState, *operations: Operation, reason: str = "why") -> Commit:
    at = f"2026-01-01T00:00:00.{state.number:06}Z"
    return Commit(state.number + 1, "id", state.digest, at, "me", reason, operations)


def after(*operations: Operation) -> StoreState:
    state = HEADER.empty_state()
    return fold(state, [commit(state, *operations)])


def test_versions_are_dense_and_keep_their_commit() -> None:
    state = fold(after(publish(1)), [commit(after(publish(1)), publish(2))])
    versions = state.task("a").versions
    assert [each.number for each in versions] == [1, 2]
    assert [each.commit for each in versions] == [1, 2]
    assert (versions[1].digest, versions[1].payload, versions[1].actor) == (digest(2), digest(1002), "me")


def test_operations_of_one_commit_see_each_other() -> None:
    state = after(publish(1), PASS, MoveAlias("a", "production", None, 1))
    assert state.resolve(PromptRef.parse("a@production")).number == 1


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (publish(3), ConflictError),
        (publish(1), ConflictError),
        (MoveAlias("a", "staging", 1, 1), ConflictError),
        (MoveAlias("a", "staging", None, 2), NotFoundError),
        (MoveAlias("b", "staging", None, 1), NotFoundError),
        (MoveAlias("a", "production", None, 1), RefusedError),
        (DeleteAlias("a", "candidate", 2), ConflictError),
        (DeleteAlias("a", "staging", 1), ConflictError),
        (Attest("a", 2, "gate", {}), NotFoundError),
        (Expire("a", 1), RefusedError),
        (Expire("a", 2), NotFoundError),
        (Condemn((digest(1),)), RefusedError),
        (Condemn((digest(1001),)), RefusedError),
    ],
)
def test_an_operation_against_the_rules_is_refused_to_writers_and_corrupt_to_readers(
    operation: Operation, error: type[PromptStoreError]
) -> None:
    state = after(publish(1), MoveAlias("a", "candidate", None, 1))
    with pytest.raises(error):
        check(state, [operation], "why")
    with pytest.raises(CorruptError, match="no writer may make"):
        fold(state, [commit(state, operation)])


def test_a_protected_alias_moves_only_past_a_passing_gate_or_by_force_with_a_reason() -> None:
    state = after(publish(1), publish(2), PASS)
    check(state, [MoveAlias("a", "production", None, 1)], "")
    forced = MoveAlias("a", "production", None, 2, forced=True)
    check(state, [forced], "because")
    with pytest.raises(RefusedError, match="needs a reason"):
        check(state, [forced], "")
    check(state, [MoveAlias("a", "staging", None, 2)], "")


def test_the_latest_verdict_of_the_gate_counts() -> None:
    fail = replace(PASS, body={"verdict": "fail"})
    with pytest.raises(RefusedError):
        check(after(publish(1), PASS, fail), [MoveAlias("a", "production", None, 1)], "")
    check(after(publish(1), fail, PASS), [MoveAlias("a", "production", None, 1)], "")


def test_an_expired_version_keeps_its_number_and_is_not_found() -> None:
    state = after(publish(1), publish(2), Expire("a", 1))
    with pytest.raises(NotFoundError, match="expired"):
        state.resolve(PromptRef.parse("a:1"))
    with pytest.raises(NotFoundError, match="expired"):
        check(state, [MoveAlias("a", "staging", None, 1)], "")
    assert state.task("a").versions[0].expired_in == 1
    check(state, [publish(3)], "")


def test_bytes_are_condemned_when_no_version_needs_them() -> None:
    shared = Publish("b", 1, digest(7), digest(1001))
    state = after(publish(1), shared, Expire("a", 1))
    with pytest.raises(RefusedError, match="needed"):
        check(state, [Condemn((digest(1001),))], "")
    state = fold(state, [commit(state, Condemn((digest(1),)))])
    assert state.condemned == {digest(1): 2}


def test_every_move_is_kept() -> None:
    state = after(publish(1), MoveAlias("a", "staging", None, 1), DeleteAlias("a", "staging", 1))
    moves = state.task("a").moves
    assert [(each.task, each.alias, each.before, each.after) for each in moves] == [
        ("a", "staging", None, 1),
        ("a", "staging", 1, None),
    ]
    assert state.task("a").aliases == {}


@pytest.mark.parametrize(
    "change",
    [{"number": 3}, {"number": 1}, {"parent": digest(9)}, {"at": "2025-01-01T00:00:00.000000Z"}],
)
def test_a_commit_that_does_not_follow_is_corrupt(change: dict[str, object]) -> None:
    state = after(publish(1))
    follows = commit(state, publish(2))
    fold(state, [follows])
    with pytest.raises(CorruptError, match="commit"):
        fold(state, [replace(follows, **change)])  # type: ignore[arg-type]


def test_a_refused_commit_changes_nothing() -> None:
    state = after(publish(1))
    with pytest.raises(CorruptError):
        fold(state, [commit(state, publish(2), publish(2))])
    assert len(state.task("a").versions) == 1


names = st.sampled_from(["a", "b"])
numbers = st.integers(1, 4)
aliases = st.sampled_from(["production", "staging"])
any_operation: st.SearchStrategy[Operation] = st.one_of(
    st.builds(lambda task, number: publish(number, task), names, numbers),
    st.builds(MoveAlias, names, aliases, st.none() | numbers, numbers, st.booleans()),
    st.builds(DeleteAlias, names, aliases, numbers),
    st.builds(Attest, names, numbers, st.just("gate"), st.sampled_from([{"verdict": "pass"}, {"verdict": "fail"}])),
    st.builds(Expire, names, numbers),
    st.builds(lambda number: Condemn((digest(number),)), numbers),
)


@given(st.lists(any_operation, max_size=60))
def test_folding_in_one_go_in_steps_and_from_a_checkpoint_gives_the_same(tries: list[Operation]) -> None:
    """Also: what `check` allows, `fold` takes, and a version that any alias names is never expired."""
    state, log = HEADER.empty_state(), list[Commit]()
    for operation in tries:
        try:
            check(state, [operation], "why")
        except PromptStoreError:
            continue
        log.append(commit(state, operation))
        state = fold(state, log[-1:])
        for task in state.tasks.values():
            assert [each.number for each in task.versions] == list(range(1, len(task.versions) + 1))
            assert not any(task.version(number).is_expired for number in task.aliases.values())
        assert not needed_digests(state, [each for each, at in state.condemned.items() if at == state.number])
    assert fold(HEADER.empty_state(), log) == state
    middle = fold(HEADER.empty_state(), log[: len(log) // 2])
    if middle.number:
        assert checkpoint_from_bytes(checkpoint_to_bytes(middle), HEADER) == middle
    assert fold(middle, log[middle.number :]) == state


def test_a_checkpoint_of_another_store_or_shape_is_corrupt() -> None:
    data = checkpoint_to_bytes(after(publish(1)))
    with pytest.raises(CorruptError, match="of store test"):
        checkpoint_from_bytes(data, replace(HEADER, id="other"))
    for damaged in (
        data.replace(b'"format":1', b'"format":9'),
        data.replace(b'"tasks":["a"]', b'"tasks":["a","b"]'),
        data.replace(b'"versions":[[', b'"versions":[[0,'),
        data.replace(b'"moves":[]', b'"moves":[[]]'),
        data.replace(b'"moves"', b'"movez"'),
        data + b"{}",
        b"[]",
    ):
        assert damaged != data
        with pytest.raises(CorruptError):
            checkpoint_from_bytes(damaged, HEADER).task("a")
