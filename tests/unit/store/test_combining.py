"""Versions of one task as one more version."""

from dataclasses import replace

import pytest

from promptstore.core.ensemble import Ensemble
from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.combining import combine_versions
from promptstore.store.following import read_commit
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task


@pytest.fixture
def prompts() -> PromptStore:
    store = sample_store(MemoryObjectStore())
    for seed in range(3):
        store.publish(sample_prompt(seed), sample_task())
    return store


def test_members_are_what_the_versions_hold_and_the_log_says_who_they_are(prompts: PromptStore) -> None:
    version = combine_versions(prompts, ["sst2:1", "sst2:2", "sst2:3"], "vote", reason="steadier")
    assert str(version) == "sst2:4"
    pulled = prompts.pull("sst2:4", for_model=None)
    assert pulled.prompt.ensemble == pulled.manifest.payload.ensemble == Ensemble(3, "vote")
    expected = [prompts.pull(f"sst2:{at}", for_model=None).prompt.embeddings.tolist() for at in (1, 2, 3)]
    assert [each.embeddings.tolist() for each in pulled.prompt.members] == expected
    objects = prompts.ledger.objects
    assert verify(objects).problems == ()
    assert read_commit(objects, version.commit).reason == "steadier (vote of sst2:1, sst2:2, sst2:3)"
    assert combine_versions(prompts, ["sst2:1", "sst2:2", "sst2:3"], "vote") == version


def test_versions_that_answer_other_questions_are_refused(prompts: PromptStore) -> None:
    prompts.publish(sample_prompt(7), sample_task("other"))
    asked_otherwise = replace(sample_task(), template="{text} It was")
    prompts.publish(sample_prompt(8), asked_otherwise)
    prompts.publish(sample_prompt(9, num_virtual_tokens=3), sample_task())
    before = prompts.state.number
    for refs, why in (
        (["sst2:1", "other:1"], "same question"),
        (["sst2:1", "sst2:4"], "same question"),
        (["sst2:1", "sst2:5"], "one length"),
        (["sst2:1"], "2 to 64"),
        ([], "at least two"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            combine_versions(prompts, refs, "mean")
    with pytest.raises(InvalidInputError, match="combination"):
        combine_versions(prompts, ["sst2:1", "sst2:2"], "median")
    assert prompts.refresh().number == before


def test_a_task_that_generates_text_has_no_ensemble(prompts: PromptStore) -> None:
    task = TaskSpec("echo", "generation", "Say: {text}", sample_task().data)
    for seed in range(2):
        prompts.publish(sample_prompt(seed), task)
    with pytest.raises(InvalidInputError, match="generates text"):
        combine_versions(prompts, ["echo:1", "echo:2"], "mean")


def test_a_payload_of_another_shape_than_the_manifest_says_is_found(prompts: PromptStore) -> None:
    """Two ensembles of one [K, P, H] differ by their header alone."""
    version = combine_versions(prompts, ["sst2:1", "sst2:2"], "mean")
    other = combine_versions(prompts, ["sst2:1", "sst2:2"], "vote")
    assert version.payload != other.payload
    key = f"payloads/{version.payload[:2]}/{version.payload}.safetensors"
    objects = prompts.ledger.objects
    objects.put(key, objects.get(f"payloads/{other.payload[:2]}/{other.payload}.safetensors"))
    with pytest.raises(CorruptError):
        prompts.pull("sst2:4", for_model=None)
