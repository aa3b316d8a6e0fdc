"""Several prompts of one task as one answer (Lester et al. 2021, section 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from promptstore.errors import InvalidInputError
from promptstore.tuning.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class EnsembleEvaluation:
    """What k prompts do alone and together. vote: the label most of them say; mean: the label that is likeliest on
    average.
    """

    members: tuple[Evaluation, ...]
    vote: Evaluation
    mean: Evaluation

    @property
    def average(self) -> float:
        """The task's metric of a member, on average."""
        return float(np.mean([member.value for member in self.members]))

    @property
    def best(self) -> float:
        """The task's metric of the best member."""
        pick = max if self.vote.higher_is_better else min
        return pick(member.value for member in self.members)


def combine(members: Sequence[Evaluation]) -> EnsembleEvaluation:
    """Evaluations of one classification task on the same rows, taken together; `evaluate_all` computes them in one go.

    Raises:
        InvalidInputError: none, another kind of task, or different rows or labels.
    """
    if not members or any(member.kind != "classification" for member in members):
        raise InvalidInputError("an ensemble needs at least one evaluation, of a classification task")
    if len({(member.data_digest, member.labels, member.metric) for member in members}) != 1:
        raise InvalidInputError("the members of an ensemble must be evaluated on the same rows, labels and metric")
    scores = np.mean([member.columns["label_log_probability"] for member in members], axis=0)
    votes = np.zeros(scores.shape)
    for member in members:
        votes[np.arange(len(votes)), member.columns["predicted"]] += 1
    seconds = sum(member.seconds for member in members)
    # A tied vote goes to the label that is likelier on average: shares below 1 decide between equal whole numbers.
    tied = votes + 0.5 * np.exp(scores)
    return EnsembleEvaluation(
        tuple(members), vote=_evaluation(members[0], tied, seconds), mean=_evaluation(members[0], scores, seconds)
    )


def _evaluation(like: Evaluation, scores: npt.NDArray[Any], seconds: float) -> Evaluation:
    expected = like.columns["expected"]
    predicted = scores.argmax(axis=1)
    own = scores[np.arange(len(expected)), expected]
    columns = {
        "predicted": predicted,
        "expected": expected,
        "reciprocal_rank": 1.0 / (1 + np.sum(scores > own[:, None], axis=1)),
    }
    return replace(like, predictions=tuple(like.labels[at] for at in predicted), columns=columns, seconds=seconds)
