"""Following the log as events."""

import json
from pathlib import Path

import pytest

from promptstore.errors import CorruptError, InvalidInputError, UntrustedError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.watch import Cursor, watch
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task


@pytest.fixture
def prompts() -> PromptStore:
    prompts = sample_store(MemoryObjectStore())
    for seed in range(3):
        prompts.publish(sample_prompt(seed), sample_task(), reason=f"round {seed}")
    prompts.expire(["sst2:1", "sst2:2"], reason="old\nones")
    return prompts


def again(prompts: PromptStore) -> Ledger:
    return Ledger.open(prompts.ledger.objects, actor="consumer")


def test_every_operation_is_an_event_in_order(prompts: PromptStore) -> None:
    events = list(watch(again(prompts), poll_s=None))
    assert [each.id for each in events] == ["1.0", "2.0", "3.0", "4.0", "4.1"]
    lines = [each.to_line() for each in events]
    assert not any("\n" in line for line in lines)
    last = json.loads(lines[-1])
    assert last["op"] == "expire"
    assert (last["task"], last["number"], last["reason"], last["store"]) == (
        "sst2",
        2,
        "old\nones",
        prompts.state.store_id,
    )


def test_a_consumer_goes_on_where_it_was(prompts: PromptStore, tmp_path: Path) -> None:
    cursor = Cursor(tmp_path, "outbox")
    assert len(list(watch(again(prompts), cursor=cursor, poll_s=None))) == 5
    assert list(watch(again(prompts), cursor=cursor, poll_s=None)) == []
    prompts.publish(sample_prompt(9), sample_task())
    assert [each.id for each in watch(again(prompts), cursor=cursor, poll_s=None)] == ["5.0"]
    assert len(list(watch(again(prompts), cursor=Cursor(tmp_path, "other"), poll_s=None))) == 6


@pytest.mark.parametrize("handled", range(6))
def test_a_consumer_that_dies_sees_each_event_at_least_once_in_order(
    prompts: PromptStore, tmp_path: Path, handled: int
) -> None:
    seen = []
    stream = watch(again(prompts), cursor=Cursor(tmp_path, "c"), poll_s=None)
    for _ in range(handled):
        event = next(stream, None)
        if event:
            seen.append(event.id)
    del stream
    rest = [each.id for each in watch(again(prompts), cursor=Cursor(tmp_path, "c"), poll_s=None)]
    assert sorted({*seen, *rest}) == ["1.0", "2.0", "3.0", "4.0", "4.1"]
    assert len(rest) >= 5 - handled
    assert rest == sorted(rest)


def test_it_waits_at_the_end_of_the_log(prompts: PromptStore) -> None:
    def publish_another(seconds: float) -> None:
        waits.append(seconds)
        prompts.publish(sample_prompt(100 + len(waits)), sample_task())

    waits: list[float] = []
    stream = watch(again(prompts), start=5, poll_s=2.5, sleep=publish_another)
    assert [next(stream).id for _ in range(3)] == ["5.0", "6.0", "7.0"]
    assert waits == [2.5] * 3


def test_a_cursor_belongs_to_one_log(prompts: PromptStore, tmp_path: Path) -> None:
    cursor = Cursor(tmp_path, "c")
    list(watch(again(prompts), cursor=cursor, poll_s=None))
    other = sample_store(MemoryObjectStore())
    with pytest.raises(UntrustedError, match="is of store"):
        next(watch(other.ledger, cursor=cursor, poll_s=None))
    forked = MemoryObjectStore()
    forked.put("store.json", prompts.ledger.objects.get("store.json"))
    fork = sample_store(forked)
    for seed in range(10, 14):
        fork.publish(sample_prompt(seed), sample_task())
    with pytest.raises(UntrustedError, match="commit 4 is another"):
        next(watch(fork.ledger, cursor=cursor, poll_s=None))


def test_a_damaged_cursor_is_named_with_the_way_out(prompts: PromptStore, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"store": 1}')
    with pytest.raises(CorruptError, match=r"c\.json.*Delete this cursor"):
        next(watch(prompts.ledger, cursor=Cursor(tmp_path, "c"), poll_s=None))


def test_a_cursor_name_is_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not valid"):
        Cursor(tmp_path, "../x")
