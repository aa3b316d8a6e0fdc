"""Is one prompt better than another on the same rows, or was it luck?"""

from dataclasses import dataclass
from math import comb

import numpy as np

from promptstore.errors import InvalidInputError
from promptstore.tuning.evaluation import Evaluation, resampled
from promptstore.tuning.metrics import METRICS


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact McNemar test. gained, lost: rows that only the candidate, or only the other, answered correctly.

    p_worse: how likely at least so many losses are if neither is better. p_different: the same for either direction.
    """

    gained: int
    lost: int
    p_worse: float
    p_different: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The candidate's metric minus the other's, positive if better, with its bootstrap interval over shared rows.

    p_worse: share of resamples in which the candidate is the better one, ties by half: small if it is worse.
    """

    difference: float
    low: float
    high: float
    p_worse: float


def mcnemar(candidate: Evaluation, other: Evaluation) -> McNemar:
    """Compares which rows were answered correctly.

    Raises:
        InvalidInputError: the two were evaluated on different rows.
    """
    _require_same_rows(candidate, other)
    gained = int(np.sum(candidate.is_correct & ~other.is_correct))
    lost = int(np.sum(~candidate.is_correct & other.is_correct))
    p_worse = upper_tail(lost, gained + lost)
    p_different = min(1.0, 2 * min(p_worse, upper_tail(gained, gained + lost)))
    return McNemar(gained, lost, p_worse, p_different)


def paired_difference(
    candidate: Evaluation, other: Evaluation, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Compares the task's metric, whatever it is, on resampled rows.

    Raises:
        InvalidInputError: the two were evaluated on different rows.
    """
    _require_same_rows(candidate, other)
    metric = METRICS[candidate.kind][candidate.metric]
    sign = 1.0 if candidate.higher_is_better else -1.0
    draw = np.random.default_rng(seed)
    differences = np.empty(samples)
    for sample in range(samples):
        index = draw.integers(0, candidate.rows, size=candidate.rows)
        ours, theirs = metric(resampled(candidate.columns, index)), metric(resampled(other.columns, index))
        differences[sample] = sign * (ours - theirs)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    p_worse = float(np.mean(differences > 0) + 0.5 * np.mean(differences == 0))
    return PairedDifference(sign * (candidate.value - other.value), float(low), float(high), p_worse)


def upper_tail(hits: int, trials: int) -> float:
    """P(X >= hits) for X binomial(trials, 1/2), exact."""
    outcomes = sum(comb(trials, k) for k in range(hits, trials + 1))
    return outcomes / (1 << trials)


def _require_same_rows(candidate: Evaluation, other: Evaluation) -> None:
    if candidate.data_digest != other.data_digest or candidate.metric != other.metric:
        raise InvalidInputError(
            f"evaluations of {candidate.task} cannot be compared: {candidate.metric} on data "
            f"{candidate.data_digest[:12]} against {other.metric} on {other.data_digest[:12]}; evaluate both alike"
        )
