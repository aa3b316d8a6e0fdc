"""Ensembles of prompts."""

from dataclasses import replace

import numpy as np
import pytest

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


def test_the_vote_goes_to_the_majority_and_the_mean_to_the_likeliest() -> None:
    """Two members say b, a little; one says a, surely."""
    members = [member([[0.39, 0.41, 0.2]], [0]), member([[0.39, 0.41, 0.2]], [0]), member([[0.97, 0.02, 0.01]], [0])]
    found = combine(members)
    assert found.vote.predictions == ("b",)
    assert found.mean.predictions == ("a",)
    assert (found.vote.value, found.mean.value) == (0.0, 1.0)
    assert found.average == pytest.approx(1 / 3)
    assert found.best == 1.0
    assert found.vote.seconds == 3.0


def test_a_tied_vote_goes_to_the_label_that_is_likelier_on_average() -> None:
    members = [member([[0.5, 0.3, 0.2]], [1]), member([[0.2, 0.7, 0.1]], [1])]
    assert combine(members).vote.predictions == ("b",)
    assert combine(members[::-1]).vote.predictions == ("b",)


def test_an_ensemble_of_one_is_its_member() -> None:
    one = member([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], [0, 1, 1])
    found = combine([one])
    for together in (found.vote, found.mean):
        assert together.predictions == one.predictions
        assert together.value == pytest.approx(2 / 3)
    assert found.mean.metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_members_of_different_rows_are_refused() -> None:
    one = member([[0.5, 0.3, 0.2]], [0])
    with pytest.raises(InvalidInputError, match="same rows"):
        combine([one, replace(one, data_digest="b" * 64)])
    with pytest.raises(InvalidInputError, match="at least one"):
        combine([])
