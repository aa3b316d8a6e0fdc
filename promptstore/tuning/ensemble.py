"""What several prompts of one task do together (Lester et al. 2021, section 6)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from promptstore.core.ensemble import Ensemble
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.metrics import label_columns


def together(prompt: SoftPrompt | None, found: Iterator[Evaluation]) -> Evaluation:
    """The next evaluation, or that of all members where `prompt` is an ensemble. Raises as `combine`."""
    if prompt is None or prompt.ensemble is None:
        return next(found)
    return combine(list(islice(found, prompt.ensemble.members)), prompt.ensemble)


def combine(members: Sequence[Evaluation], ensemble: Ensemble) -> Evaluation:
    """Evaluations of one classification task on the same rows as one, with the members in it.

    Raises:
        InvalidInputError: not as many as the ensemble has, another kind of task, or different rows or labels.
    """
    if len(members) != ensemble.members or any(member.kind != "classification" for member in members):
        raise InvalidInputError(f"expected {ensemble.members} evaluations of a classification task")
    if len({(member.data_digest, member.labels, member.metric) for member in members}) != 1:
        raise InvalidInputError("the members of an ensemble must be evaluated on the same rows, labels and metric")
    scores = ensemble.combine([member.columns["label_log_probability"] for member in members])
    columns = label_columns(members[0].columns["expected"], scores)
    return replace(
        members[0],
        predictions=tuple(members[0].labels[at] for at in columns["predicted"]),
        columns=columns,
        seconds=float(np.sum([member.seconds for member in members])),
        members=tuple(members),
    )
