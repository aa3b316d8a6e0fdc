"""Rollouts as statements in the log: who may start one, and what ends it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest

from promptstore.core.state import PromptVersion
from promptstore.core.task import Label, TaskSpec
from promptstore.errors import ConflictError, InvalidInputError, NotFoundError, RefusedError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.prompt_store import PromptStore, Ref
from promptstore.store.rollout import (
    Bounds,
    RolloutMode,
    abort_rollout,
    active_rollouts,
    finish_rollout,
    start_rollout,
)
from promptstore.testing.served import ANSWER, SENTIMENT, publish_random, store_of_candidates
from promptstore.testing.tiny_models import tiny_llama

KEY = ("sentiment", "production")


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


@pytest.fixture
def store(model: FrozenModel) -> PromptStore:
    return store_of_candidates(model)


def test_only_one_version_is_on_trial_for_an_alias(store: PromptStore) -> None:
    started = start_rollout(store, "sentiment:2", share=0.1)
    assert start_rollout(store, "sentiment:2", share=0.1) == started
    with pytest.raises(ConflictError, match="sentiment:2"):
        start_rollout(store, "sentiment:3", mode="shadow")
    changed = start_rollout(store, "sentiment:2", share=0.5)
    assert changed.share == 0.5
    assert changed.commit > started.commit


def test_a_protected_alias_needs_a_gate_for_a_share_but_not_for_a_shadow(store: PromptStore) -> None:
    with pytest.raises(RefusedError, match="gate"):
        start_rollout(store, "sentiment:3")
    assert start_rollout(store, "sentiment:3", mode="shadow").mode == "shadow"


def test_what_makes_no_sense_is_refused(store: PromptStore) -> None:
    for share in (0.0, 1.1, -1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="share"):
            start_rollout(store, "sentiment:2", share=share)
    with pytest.raises(InvalidInputError, match="mode"):
        start_rollout(store, "sentiment:2", mode="blue")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="min_agreement"):
        start_rollout(store, "sentiment:2", bounds=Bounds(min_agreement=2.0))
    with pytest.raises(ConflictError, match="nothing to try"):
        start_rollout(store, "sentiment:1")
    with pytest.raises(NotFoundError):
        start_rollout(store, "sentiment:2", "staging")
    with pytest.raises(NotFoundError):
        abort_rollout(store, "sentiment")
    with pytest.raises(NotFoundError):
        finish_rollout(store, "sentiment")


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (replace(SENTIMENT, template="Review: {review}\nSentiment:"), "input fields review"),
        (replace(SENTIMENT, labels=(*SENTIMENT.labels, Label("mixed", "both"))), "labels mixed, neg, pos"),
        (replace(ANSWER, name="sentiment"), "kind generation"),
    ],
)
def test_a_version_that_callers_would_have_to_ask_otherwise_is_not_tried(
    store: PromptStore, model: FrozenModel, task: TaskSpec, what: str
) -> None:
    version = publish_random(store, model, task, seed=4, alias=None)
    for mode in get_args(RolloutMode):
        with pytest.raises(InvalidInputError, match=what):
            start_rollout(store, str(version), mode=mode, force=True, reason="test")
    assert active_rollouts(store.refresh()) == {}


def test_another_wording_of_the_same_question_may_be_tried(store: PromptStore, model: FrozenModel) -> None:
    labels = (Label("neg", "bad"), Label("pos", "good"))
    publish_random(store, model, replace(SENTIMENT, template="{text} It was", labels=labels), seed=4, alias=None)
    assert start_rollout(store, "sentiment:4", mode="shadow").number == 4


def test_a_statement_of_a_later_kind_of_writer_starts_nothing(store: PromptStore) -> None:
    for body in ({"alias": "production", "state": "started", "mode": "waves", "share": 0.1}, {"alias": 7}, {}):
        store.attest("sentiment:2", "rollout", body)
        assert active_rollouts(store.state) == {}


def test_the_alias_reaching_the_version_by_other_means_ends_the_trial(store: PromptStore) -> None:
    start_rollout(store, "sentiment:2")
    store.promote("sentiment:2", reason="enough")
    assert active_rollouts(store.state) == {}


@pytest.mark.parametrize("is_old", [False, True])
def test_a_rollout_that_a_move_ended_does_not_come_back_with_a_rollback(store: PromptStore, is_old: bool) -> None:
    if is_old:
        said = {"alias": "production", "state": "started", "mode": "share", "share": 0.5}
        store.attest("sentiment:2", "rollout", said)
    else:
        start_rollout(store, "sentiment:2", share=0.5)
    assert KEY in active_rollouts(store.state)
    store.promote("sentiment:2", reason="enough")
    store.rollback("sentiment", reason="bad")
    assert store.resolve("sentiment").number == 1
    assert active_rollouts(store.state) == {}
    with pytest.raises(NotFoundError):
        abort_rollout(store, "sentiment")
    again = start_rollout(store, "sentiment:2", share=0.5)
    assert active_rollouts(store.state) == {KEY: again}


def test_a_rollout_that_a_move_overtakes_is_not_started(store: PromptStore) -> None:
    class Overtaken(PromptStore):
        def attest(self, ref: Ref, kind: str, body: Mapping[str, Any], **said: Any) -> PromptVersion:
            store.promote("sentiment:3", force=True, reason="meanwhile")
            return super().attest(ref, kind, body, **said)

    with pytest.raises(ConflictError, match="moved while"):
        start_rollout(Overtaken(store.ledger, store.ledger.objects), "sentiment:2")
    assert active_rollouts(store.refresh()) == {}
