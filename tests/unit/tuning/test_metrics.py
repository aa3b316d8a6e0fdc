"""Metrics against their published definitions, as scikit-learn computes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from promptstore.errors import InvalidInputError
from promptstore.tuning.metrics import METRICS, exact_match, main_metric, normalised_answer, token_f1

label_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(label_pairs)
def test_macro_f1_is_what_scikit_learn_computes(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = np.array(pairs).T
    ours = METRICS["classification"]["macro_f1"]({"predicted": predicted, "expected": expected})
    assert ours == pytest.approx(f1_score(expected, predicted, average="macro", zero_division=0))


@given(label_pairs)
def test_f1_of_the_first_label_is_what_scikit_learn_computes(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = np.array(pairs).T
    ours = METRICS["classification"]["f1"]({"predicted": predicted, "expected": expected})
    assert ours == pytest.approx(f1_score(expected == 0, predicted == 0, zero_division=0))


@given(label_pairs)
def test_matthews_correlation_is_what_scikit_learn_computes(pairs: list[tuple[int, int]]) -> None:
    predicted, expected = np.array(pairs).T
    ours = METRICS["classification"]["matthews"]({"predicted": predicted, "expected": expected})
    assert ours == pytest.approx(matthews_corrcoef(expected, predicted), abs=1e-12)


def test_perplexity_weighs_every_target_token_alike() -> None:
    columns = {"log_probability": np.array([-1.0, -9.0]), "target_tokens": np.array([1, 3])}
    assert METRICS["generation"]["perplexity"](columns) == pytest.approx(np.exp(10 / 4))


@pytest.mark.parametrize(
    ("prediction", "target", "matches", "f1"),
    [
        ("The cat.", "cat", 1.0, 1.0),
        ("cat sat", "the cat sat down", 0.0, 2 * 2 / 5),
        ("cat cat", "cat", 0.0, 2 / 3),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("dog", "cat", 0.0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, target: str, matches: float, f1: float) -> None:
    assert exact_match(prediction, target) == matches
    assert token_f1(prediction, target) == pytest.approx(f1)


def test_an_answer_of_articles_and_punctuation_is_empty() -> None:
    assert normalised_answer("  The, an... A!") == ""


def test_generation_is_judged_by_exact_match_unless_its_task_says_otherwise() -> None:
    assert main_metric("generation", "accuracy") == "exact_match"
    assert main_metric("generation", "token_f1") == "token_f1"


def test_a_metric_of_the_other_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"'perplexity' is unknown for classification.*accuracy"):
        main_metric("classification", "perplexity")
