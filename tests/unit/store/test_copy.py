"""A store at two places."""

from datetime import timedelta

import pytest

from promptstore.errors import ConflictError, CorruptError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.copy import Copied, copy_store
from promptstore.store.garbage import collect_garbage
from promptstore.store.layout import BlobKey, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.scripted_objects import Call, CrashError, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, sample_prompt, sample_store, sample_task


def open_(objects: MemoryObjectStore | ScriptedObjects) -> PromptStore:
    return PromptStore(Ledger.open(objects, actor="x", patience=IMPATIENT), objects)


def publish(prompts: PromptStore, seeds: range) -> None:
    for seed in seeds:
        prompts.publish(sample_prompt(seed), sample_task())


@pytest.fixture
def source() -> PromptStore:
    prompts = sample_store(MemoryObjectStore("source"))
    publish(prompts, range(5))
    prompts.promote("sst2:4", "staging")
    prompts.expire(["sst2:2"])
    return prompts


@pytest.fixture
def target() -> ScriptedObjects:
    return ScriptedObjects(MemoryObjectStore("target"))


def test_a_copy_has_the_same_history_and_digests(source: PromptStore, target: ScriptedObjects) -> None:
    assert copy_store(source.ledger, target) == Copied(commits=7, blobs=8, checkpoints=0)
    copied = open_(target)
    assert copied.state == source.state
    assert list(copied.ledger.commits()) == list(source.ledger.commits())
    assert copied.pull("sst2@staging", for_model=None).version == source.resolve("sst2:4")
    assert verify(target).is_clean


def test_copying_again_brings_only_what_is_new(source: PromptStore, target: ScriptedObjects) -> None:
    copy_store(source.ledger, target)
    assert copy_store(source.ledger, target) == Copied(0, 0, 0)
    publish(source, range(5, 205))
    assert copy_store(source.ledger, target) == Copied(200, 400, 2)
    target.calls.clear()
    assert open_(target).state == source.state
    assert len(target.calls) < 40


def test_versions_that_expired_and_were_collected_are_not_needed(source: PromptStore, target: ScriptedObjects) -> None:
    collect_garbage(source.ledger, grace=timedelta(0), dry_run=False)
    source.publish(sample_prompt(1), sample_task())
    copy_store(source.ledger, target)
    assert open_(target).pull("sst2:6", for_model=None).prompt.embeddings.any()
    assert verify(target).is_clean


@pytest.mark.parametrize("step", range(32))
def test_a_copy_that_dies_anywhere_goes_on(source: PromptStore, target: ScriptedObjects, step: int) -> None:
    writes = 0

    def die_at_that_write(call: Call) -> Fault | None:
        nonlocal writes
        writes += call.writes
        return Fault.CRASH_AFTER if call.writes and writes == step // 2 + 1 else None

    target.script = die_at_that_write
    with pytest.raises(CrashError):
        copy_store(source.ledger, target)
    target.script = lambda _: None
    if step % 2:
        publish(source, range(5, 7))
    copy_store(source.ledger, target)
    assert open_(target).state == source.state
    assert verify(target).is_clean


class CarelessObjects(ScriptedObjects):
    """Ignores create-only writes, as some servers do."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_another_store_is_not_overwritten(source: PromptStore, target: ScriptedObjects) -> None:
    sample_store(target)
    before = target.get("store.json")
    with pytest.raises(ConflictError, match="holds another store"):
        copy_store(source.ledger, CarelessObjects(target))
    assert target.get("store.json") == before


@pytest.mark.parametrize("behind", [0, 1, 3])
def test_a_copy_that_was_written_to_is_refused(source: PromptStore, target: ScriptedObjects, behind: int) -> None:
    copy_store(source.ledger, target)
    publish(open_(target), range(50, 51))
    publish(source, range(60, 60 + behind))
    with pytest.raises(ConflictError, match="written to"):
        copy_store(source.ledger, target)
    assert open_(target).state.number == 8


def test_a_copy_that_is_written_to_meanwhile_is_noticed(source: PromptStore, target: ScriptedObjects) -> None:
    copy_store(source.ledger, target)
    publish(source, range(60, 61))

    def somebody_publishes_to_the_copy(call: Call) -> None:
        if call.key == commit_key(8) and call.verb == "put_if_absent":
            target.script = lambda _: None
            publish(open_(target), range(50, 51))

    target.script = somebody_publishes_to_the_copy
    with pytest.raises(ConflictError, match="another commit 8"):
        copy_store(source.ledger, target)


def test_a_damaged_source_is_not_copied(source: PromptStore, target: ScriptedObjects) -> None:
    objects = source.ledger.objects
    payload = str(BlobKey("payload", source.resolve("sst2:4").payload))
    good = objects.get(payload)
    objects.put(payload, b"damaged")
    with pytest.raises(CorruptError, match="payloads"):
        copy_store(source.ledger, target)
    objects.delete(payload)
    with pytest.raises(CorruptError, match="is missing"):
        copy_store(source.ledger, target)
    objects.put(payload, good)
    objects.put(commit_key(3), objects.get(commit_key(4)))
    with pytest.raises(CorruptError, match="commit 3"):
        copy_store(source.ledger, target)


def test_a_version_that_is_collected_during_the_copy_is_left_out(source: PromptStore, target: ScriptedObjects) -> None:
    def collect_at_the_first_payload(call: Call) -> None:
        if call.key.startswith("payloads") and call.verb == "list":
            target.script = lambda _: None
            source.expire(["sst2:5"])
            collect_garbage(open_(source.ledger.objects).ledger, grace=timedelta(0), dry_run=False)  # type: ignore[arg-type]

    target.script = collect_at_the_first_payload
    copy_store(source.ledger, target)
    copy_store(source.ledger, target)
    assert open_(target).state == source.refresh()
    assert verify(target).is_clean
