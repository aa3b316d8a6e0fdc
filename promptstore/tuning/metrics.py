"""Metrics as GLUE, SuperGLUE and SQuAD define them, over columns with one entry per row: rows can be resampled."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from promptstore.core.task import TaskKind
from promptstore.errors import InvalidInputError

Columns = Mapping[str, npt.NDArray[Any]]
Metric = Callable[[Columns], float]

LOWER_IS_BETTER = frozenset({"perplexity"})
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(columns: Columns) -> float:
    """Share of rows whose predicted label is the expected one."""
    return float(np.mean(columns["predicted"] == columns["expected"]))


def macro_f1(columns: Columns) -> float:
    """Mean over the labels that are expected or predicted somewhere of the harmonic mean of precision and recall."""
    predicted, expected = columns["predicted"], columns["expected"]
    scores = []
    for label in np.union1d(predicted, expected):
        hits = float(np.sum((predicted == label) & (expected == label)))
        scores.append(2 * hits / float(np.sum(predicted == label) + np.sum(expected == label)))
    return float(np.mean(scores))


def first_label_f1(columns: Columns) -> float:
    """Harmonic mean of precision and recall of the task's first label (GLUE's F1 of MRPC and QQP); 0 if never said."""
    predicted, expected = columns["predicted"] == 0, columns["expected"] == 0
    total = float(np.sum(predicted) + np.sum(expected))
    return 2 * float(np.sum(predicted & expected)) / total if total else 0.0


def matthews(columns: Columns) -> float:
    """Matthews' correlation in its form for any number of labels (CoLA's metric); 0 if either side is constant."""
    predicted, expected = columns["predicted"], columns["expected"]
    labels = np.union1d(predicted, expected)
    said = np.array([np.sum(predicted == label) for label in labels], dtype=np.float64)
    true = np.array([np.sum(expected == label) for label in labels], dtype=np.float64)
    rows, hits = float(len(expected)), float(np.sum(predicted == expected))
    scale = (rows**2 - said @ said) * (rows**2 - true @ true)
    return float((hits * rows - said @ true) / np.sqrt(scale)) if scale > 0 else 0.0


def mean_of(column: str) -> Metric:
    """The mean of a column."""
    return lambda columns: float(np.mean(columns[column]))


def perplexity(columns: Columns) -> float:
    """exp of the mean negative log-probability of a target token."""
    return float(np.exp(-np.sum(columns["log_probability"]) / np.sum(columns["target_tokens"])))


METRICS: Mapping[TaskKind, Mapping[str, Metric]] = {
    "classification": {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "f1": first_label_f1,
        "matthews": matthews,
        "mrr": mean_of("reciprocal_rank"),
    },
    "generation": {
        "exact_match": mean_of("exact_match"),
        "token_f1": mean_of("token_f1"),
        "perplexity": perplexity,
    },
}


def main_metric(kind: TaskKind, name: str) -> str:
    """The metric that a task is judged by; "accuracy", every task's default, is exact match where text is generated.

    Raises:
        InvalidInputError: tasks of this kind have no such metric.
    """
    found = "exact_match" if kind == "generation" and name == "accuracy" else name
    if found not in METRICS[kind]:
        raise InvalidInputError(f"metric {name!r} is unknown for {kind}, expected one of {', '.join(METRICS[kind])}")
    return found


def label_columns(expected: npt.NDArray[Any], scores: npt.NDArray[Any]) -> Columns:
    """What a classification is judged by. expected: [rows], places of labels. scores: [rows, labels], logarithms."""
    own = scores[np.arange(len(expected)), expected]
    return {
        "predicted": scores.argmax(axis=1),
        "expected": expected,
        "reciprocal_rank": 1.0 / (1 + np.sum(scores > own[:, None], axis=1)),
        "log_probability": own,
        "label_log_probability": scores,
    }


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and surplus white space, as SQuAD compares answers.

    >>> normalised_answer("The  Eiffel Tower.")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, target: str) -> float:
    return float(normalised_answer(prediction) == normalised_answer(target))


def token_f1(prediction: str, target: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as both have it.

    >>> token_f1("a blue car", "the blue sky")
    0.5
    """
    said, true = normalised_answer(prediction).split(), normalised_answer(target).split()
    if not said or not true:
        return float(said == true)
    shared = sum((Counter(said) & Counter(true)).values())
    return 2 * shared / (len(said) + len(true))
