"""Paired tests, and what an evaluation says of itself."""

import numpy as np
import pytest
from scipy.stats import binomtest  # type: ignore[import-untyped]

from promptstore.errors import InvalidInputError
from promptstore.testing.tuning_samples import evaluation_of, evaluation_with
from promptstore.tuning.significance import mcnemar, paired_difference


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 3), (9, 2), (30, 31), (700, 640)])
def test_mcnemar_is_the_exact_binomial_test_over_rows_that_differ(lost: int, gained: int) -> None:
    rows = lost + gained + 5
    candidate = evaluation_with(right=rows - lost, wrong=lost)
    other = evaluation_with(right=rows - gained, wrong=gained, first_wrong=lost)
    found = mcnemar(candidate, other)
    assert (found.gained, found.lost) == (gained, lost)
    if lost + gained:
        assert found.p_worse == pytest.approx(binomtest(lost, lost + gained, alternative="greater").pvalue)
        assert found.p_different == pytest.approx(binomtest(lost, lost + gained).pvalue)
    else:
        assert found.p_worse == 1.0


def test_evaluations_of_different_rows_are_not_compared() -> None:
    candidate = evaluation_of(["a"], ["a"], data_digest="a" * 64)
    other = evaluation_of(["a"], ["a"], data_digest="b" * 64)
    for compare in (mcnemar, paired_difference):
        with pytest.raises(InvalidInputError, match="cannot be compared"):
            compare(candidate, other)


def test_the_paired_bootstrap_sees_a_difference_where_there_is_one() -> None:
    better, worse = evaluation_with(right=190, wrong=10), evaluation_with(right=150, wrong=50)
    found = paired_difference(better, worse)
    assert found.difference == pytest.approx(0.2)
    assert found.low > 0.1
    assert found.p_worse == 1.0
    assert paired_difference(worse, better).p_worse == 0.0
    assert paired_difference(better, better).p_worse == 0.5


def test_the_interval_covers_the_true_accuracy_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        wrong = int(draw.binomial(100, 0.2))
        interval = evaluation_with(right=100 - wrong, wrong=wrong).interval(samples=200)
        covered += interval.low <= 0.8 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_confusion_and_recalls_count_expected_labels_by_row() -> None:
    found = evaluation_of(["a", "a", "a", "b"], ["a", "b", "c", "b"])
    assert found.confusion.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert found.recalls == {"a": pytest.approx(1 / 3), "b": 1.0}


def test_the_summary_of_an_evaluation_is_json() -> None:
    import json

    summary = json.loads(json.dumps(evaluation_with(right=8, wrong=2).to_json()))
    assert summary["value"] == 0.8
    assert summary["interval"]["low"] < 0.8 < summary["interval"]["high"]
    assert summary["metrics"]["accuracy"] == 0.8
