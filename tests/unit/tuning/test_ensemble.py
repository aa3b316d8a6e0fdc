"""Ensembles of prompts."""

from dataclasses import replace

import numpy as np
import pytest

from promptstore.core.ensemble import COMBINATIONS, Ensemble
from promptstore.errors import InvalidInputError
from promptstore.testing.tuning_samples import evaluation_of
from promptstore.tuning.ensemble import combine
from promptstore.tuning.evaluation import Evaluation


def member(probabilities: list[list[float]], expected: list[int]) -> Evaluation:
    scores = np.log(np.array(probabilities))
    names = np.array(["a", "b", "c"])
    like = evaluation_of(["a", "b", "c"], ["a", "b", "c"])
    predicted = scores.argmax(axis=1)
    columns = {"predicted": predicted, "expected": np.array(expected), "label_log_probability": scores}
    return replace(
        like,
        predictions=tuple(names[predicted]),
        targets=tuple(names[expected]),
        columns={**columns, "reciprocal_rank": np.ones(len(expected))},
        seconds=1.0,
    )


def test_members_and_what_they_do_together_are_told() -> None:
    """Two members say b, a little; one says a, surely."""
    members = [member([[0.39, 0.41, 0.2]], [0]), member([[0.39, 0.41, 0.2]], [0]), member([[0.97, 0.02, 0.01]], [0])]
    mean, vote = (combine(members, Ensemble(3, each)) for each in COMBINATIONS)
    assert (vote.predictions, mean.predictions) == (("b",), ("a",))
    assert (vote.value, mean.value) == (0.0, 1.0)
    assert vote.members == tuple(members)
    assert vote.member_metrics == {"member_average_accuracy": pytest.approx(1 / 3), "member_best_accuracy": 1.0}
    assert vote.seconds == 3.0
    assert vote.to_json()["metrics"]["member_best_accuracy"] == 1.0


def test_ranks_are_those_of_the_combined_scores() -> None:
    one = member([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], [0, 1, 1])
    for combination in COMBINATIONS:
        found = combine([one, one], Ensemble(2, combination))
        assert found.predictions == one.predictions
        assert found.value == pytest.approx(2 / 3)
        assert found.metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_members_of_different_rows_are_refused() -> None:
    one = member([[0.5, 0.3, 0.2]], [0])
    with pytest.raises(InvalidInputError, match="same rows"):
        combine([one, replace(one, data_digest="b" * 64)], Ensemble(2))
    with pytest.raises(InvalidInputError, match="expected 2"):
        combine([one], Ensemble(2))
