"""Finding what is wrong with a store, and putting it aside."""

import random
from dataclasses import replace
from datetime import datetime
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from promptstore.core.commit import Commit
from promptstore.core.digest import sha256_hex
from promptstore.core.operation import Operation, Publish
from promptstore.core.state import StoreState
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.checkpoints import encode_checkpoint
from promptstore.store.copy import copy_store
from promptstore.store.layout import HINT_KEY, BlobKey, checkpoint_key, commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.trust import TrustPolicy
from promptstore.store.verify import quarantine, verify
from promptstore.testing.scripted_objects import Call, ScriptedObjects
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task


def grow() -> MemoryObjectStore:
    """A store with every kind of object: 106 versions, an expired one, aliases, statements, checkpoint, hint."""
    objects = MemoryObjectStore()
    prompts = sample_store(objects)
    for seed in range(106):
        prompts.publish(sample_prompt(seed), sample_task())
    prompts.attest("sst2:1", "gate", {"verdict": "pass"})
    prompts.promote("sst2:1")
    prompts.expire(["sst2:2"])
    return objects


GROWN = grow()
KEYS = [info.key for info in GROWN.list("")]


@pytest.fixture
def objects() -> MemoryObjectStore:
    copy = MemoryObjectStore()
    for key in KEYS:
        copy.put(key, GROWN.get(key))
    return copy


def open_(objects: MemoryObjectStore) -> PromptStore:
    return PromptStore(Ledger.open(objects, actor="x"), objects)


def test_a_good_store_is_clean(objects: MemoryObjectStore) -> None:
    found = verify(objects)
    assert found.is_clean
    assert found.unknown == ()
    assert found.objects == len(KEYS) == 1 + 109 + 2 + 2 * 106
    assert found.state == open_(objects).state
    assert len(found.orphans) == 2


def test_an_empty_place_is_not_a_store() -> None:
    found = verify(MemoryObjectStore())
    assert [problem.key for problem in found.problems] == ["store.json"]


@pytest.mark.parametrize(
    "key", ["store.json", commit_key(1), commit_key(50), commit_key(109), HINT_KEY, checkpoint_key(100)]
)
def test_one_flipped_bit_anywhere_in_an_object_is_found(objects: MemoryObjectStore, key: str) -> None:
    """Thirty of its bits; the seal's and the digests' own tests try them all."""
    data = objects.get(key)
    bits = range(8 * len(data))
    for bit in random.Random(0).sample(bits, 30):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        objects.put(key, bytes(flipped))
        found = verify(objects)
        assert key in {problem.key for problem in found.problems}, f"bit {bit} of {key}"
    objects.put(key, data)
    assert verify(objects).is_clean


@pytest.mark.parametrize("key", random.Random(1).sample([key for key in KEYS if BlobKey.parse(key)], 30))
def test_one_flipped_bit_in_a_payload_or_manifest_is_found(objects: MemoryObjectStore, key: str) -> None:
    data = bytearray(objects.get(key))
    data[len(data) // 2] ^= 16
    objects.put(key, bytes(data))
    assert [problem.key for problem in verify(objects).problems] == [key]


def test_missing_objects_are_found(objects: MemoryObjectStore) -> None:
    version = open_(objects).resolve("sst2:7")
    gone = [str(BlobKey("payload", version.payload)), str(BlobKey("manifest", version.digest))]
    for key in gone:
        objects.delete(key)
    found = verify(objects)
    assert {problem.key for problem in found.problems} == set(gone)
    assert all("sst2:7 needs this" in problem.message for problem in found.problems)


def test_bytes_of_an_expired_version_may_be_missing(objects: MemoryObjectStore) -> None:
    version = open_(objects).state.task("sst2").versions[1]
    objects.delete(str(BlobKey("payload", version.payload)))
    assert verify(objects).is_clean


def test_checkpoint_and_hint_may_be_missing(objects: MemoryObjectStore) -> None:
    objects.delete(HINT_KEY)
    objects.delete(checkpoint_key(100))
    assert verify(objects).is_clean


@pytest.mark.parametrize("number", [1, 60, 101])
def test_a_missing_commit_is_found(objects: MemoryObjectStore, number: int) -> None:
    objects.delete(commit_key(number))
    problems = verify(objects).problems
    assert f"commit {number} is missing" in problems[0].message


def test_a_rewritten_commit_is_found(objects: MemoryObjectStore) -> None:
    commit = Commit.from_bytes(objects.get(commit_key(60)), 60)
    objects.put(commit_key(60), replace(commit, actor="eve").to_bytes())
    assert [problem.key for problem in verify(objects).problems] == [commit_key(61)]


def test_a_checkpoint_that_lies_with_the_log_behind_it_is_found(objects: MemoryObjectStore) -> None:
    """The writer of commit 101 named a checkpoint that is not what the log says: only a full fold can tell."""
    middle = open_(objects).at(_moment(objects, 100))
    lie = encode_checkpoint(replace(middle, tasks={}))
    commit = Commit.from_bytes(objects.get(commit_key(101)), 101)
    for number in range(102, 110):
        objects.delete(commit_key(number))
    objects.delete(HINT_KEY)
    objects.put(commit_key(101), replace(commit, checkpoint=sha256_hex(lie)).to_bytes())
    objects.put(checkpoint_key(100), lie)
    assert [problem.key for problem in verify(objects).problems] == [checkpoint_key(100)]


def _moment(objects: MemoryObjectStore, number: int) -> datetime:
    return datetime.fromisoformat(Commit.from_bytes(objects.get(commit_key(number)), number).at)


def test_a_manifest_that_does_not_fit_its_payload_is_found(objects: MemoryObjectStore) -> None:
    prompts = open_(objects)
    version = prompts.resolve("sst2:7")
    manifest = prompts.manifest(version.digest)
    for wrong in (
        replace(manifest, payload=replace(manifest.payload, payload_bytes=1)),
        replace(manifest, payload=replace(manifest.payload, num_virtual_tokens=3)),
        replace(manifest, task=sample_task("other")),
    ):
        objects.put(str(BlobKey("manifest", wrong.digest)), wrong.to_bytes())
        number = len(prompts.refresh().task("sst2").versions) + 1
        operation: Operation = Publish("sst2", number, wrong.digest, version.payload)
        prompts.ledger.commit(partial(_just, operation), reason="")
        assert str(BlobKey("manifest", wrong.digest)) in {problem.key for problem in verify(objects).problems}
    assert len(verify(objects).problems) == 3


def _just(operation: Operation, _: StoreState) -> list[Operation]:
    return [operation]


def test_unsigned_commits_are_problems_to_those_who_trust_keys(objects: MemoryObjectStore) -> None:
    found = verify(objects, trust=TrustPolicy({"0" * 64: Ed25519PrivateKey.generate().public_key()}))
    assert len(found.problems) == 109
    assert "is not signed" in found.problems[0].message


def test_strangers_are_listed_and_left_alone(objects: MemoryObjectStore) -> None:
    for key in ("notes.txt", "commits/1.json", "payloads/zz/x.safetensors"):
        objects.put(key, b"?")
    found = verify(objects)
    assert found.is_clean
    assert [info.key for info in found.unknown] == ["commits/1.json", "notes.txt", "payloads/zz/x.safetensors"]


@pytest.mark.parametrize(
    ("key", "data"),
    [
        (checkpoint_key(100), b"damaged"),
        (checkpoint_key(123), b"what is this"),
        (checkpoint_key(900), b"of no commit"),
        (HINT_KEY, b"damaged"),
    ],
)
def test_quarantine_moves_and_deletes_nothing(objects: MemoryObjectStore, key: str, data: bytes) -> None:
    objects.put(key, data)
    moved = quarantine(objects, verify(objects), new_id=lambda: "today")
    assert moved == [f"quarantine/today/{key}"]
    assert objects.get(moved[0]) == data
    assert verify(objects).is_clean
    assert open_(objects).state.number == 109


@pytest.mark.parametrize("heal", ["publish", "copy"])
def test_a_quarantined_payload_comes_back(objects: MemoryObjectStore, heal: str) -> None:
    mirror = MemoryObjectStore()
    copy_store(open_(objects).ledger, mirror)
    payload = BlobKey("payload", open_(objects).resolve("sst2:7").payload)
    objects.put(str(payload), b"damaged")
    assert len(quarantine(objects, verify(objects))) == 1
    assert "needs this payload" in verify(objects).problems[0].message
    if heal == "publish":
        assert open_(objects).publish(sample_prompt(6), sample_task()).number == 7
    else:
        copy_store(open_(mirror).ledger, objects)
    assert verify(objects).is_clean


def test_the_log_is_never_moved(objects: MemoryObjectStore) -> None:
    objects.put(commit_key(50), b"damaged")
    objects.put("store.json", b"damaged")
    found = verify(objects)
    assert len(found.problems) == 2
    assert quarantine(objects, found) == []


@pytest.mark.parametrize("step", range(0, 330, 13))
def test_a_store_that_is_written_to_meanwhile_is_still_clean(objects: MemoryObjectStore, step: int) -> None:
    def write(call: Call) -> None:
        if call.number == step:
            scripted.script = lambda _: None
            prompts = open_(objects)
            prompts.publish(sample_prompt(999), sample_task("new"))
            prompts.expire(["sst2:3"])
            objects.delete(str(BlobKey("payload", prompts.state.task("sst2").versions[2].payload)))

    scripted = ScriptedObjects(objects, write)
    assert verify(scripted).is_clean


def test_every_kind_of_object_was_looked_at() -> None:
    scripted = ScriptedObjects(GROWN)
    verify(scripted)
    assert {call.key for call in scripted.calls if call.verb == "get"} >= set(KEYS)
