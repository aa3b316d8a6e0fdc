"""References, prompts, fingerprints, tasks."""

import doctest
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

import promptstore.core.digest
import promptstore.core.instant
import promptstore.core.ref
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import MAX_VIRTUAL_TOKENS, SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.core.task import TaskSpec
from promptstore.errors import IncompatibleModelError, InvalidInputError
from promptstore.testing.store_samples import sample_fingerprint, sample_task
from promptstore.testing.strategies import digests, names, numbers, tasks


@pytest.mark.parametrize("module", [promptstore.core.digest, promptstore.core.instant, promptstore.core.ref])
def test_examples_in_the_documentation_hold(module: object) -> None:
    found = doctest.testmod(module)  # type: ignore[arg-type]
    assert found.attempted > 0
    assert found.failed == 0


@given(names, names, numbers, digests)
def test_a_reference_reads_back_from_its_text(task: str, alias: str, number: int, digest: str) -> None:
    for ref in (PromptRef(task, alias=alias), PromptRef(task, number=number), PromptRef(task, digest=digest)):
        assert PromptRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    ["", "@", "a@", "a:", "a:0", "a:-1", "a:x", "a:٣", "A", "../a", "a@b@c", "a@sha256:1", "a b", "a" * 65, "-a"],
)
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        PromptRef.parse(text)


@pytest.mark.parametrize(
    "embeddings",
    [
        np.zeros((2, 4), np.float64),
        np.zeros((2, 5), np.float32),
        np.zeros(4, np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((MAX_VIRTUAL_TOKENS + 1, 4), np.float32),
        np.array([[0, 0, 0, np.nan]], np.float32),
        np.array([[0, 0, 0, np.inf]], np.float32),
    ],
    ids=["dtype", "width", "rank", "empty", "long", "nan", "infinity"],
)
def test_what_is_no_prompt_is_refused(embeddings: npt.NDArray[np.float32]) -> None:
    with pytest.raises(InvalidInputError):
        SoftPrompt(embeddings, sample_fingerprint(4))


def test_a_prompt_does_not_change_with_the_array_it_was_made_from() -> None:
    values = np.zeros((2, 4), np.float32)
    prompt = SoftPrompt(values, sample_fingerprint(4))
    values[:] = 1
    assert not prompt.embeddings.any()
    with pytest.raises(ValueError, match="read-only"):
        prompt.embeddings[0, 0] = 1


def test_a_model_matches_by_identity_and_not_by_name() -> None:
    model = sample_fingerprint()
    model.require_match(replace(model, name="renamed", revision="main"), "sst2:1")
    for change in (
        {"architecture": "B"},
        {"hidden_size": 5},
        {"weights_digest": "f" * 64},
        {"tokenizer_digest": "f" * 64},
    ):
        other: BaseModelFingerprint = replace(model, **change)
        with pytest.raises(IncompatibleModelError, match="sst2:1 was fitted to tiny"):
            model.require_match(other, "sst2:1")


@given(tasks)
def test_a_task_reads_back_equal(task: TaskSpec) -> None:
    assert TaskSpec.from_json(task.to_json()) == task


def test_rendering_takes_text_fields_alone() -> None:
    task = sample_task()
    assert task.render({"text": "fine {as} it is"}) == "Review: fine {as} it is\nSentiment:"
    with pytest.raises(InvalidInputError, match="'text' is missing"):
        task.render({})
