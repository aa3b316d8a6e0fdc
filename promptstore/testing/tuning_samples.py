"""Evaluations and tasks made of plain lists, for tests of what follows a fit."""

from collections.abc import Sequence

import numpy as np

from promptstore.tuning.evaluation import Evaluation


def evaluation_of(
    expected: Sequence[str], predicted: Sequence[str], *, metric: str = "accuracy", data_digest: str = "a" * 64
) -> Evaluation:
    """The evaluation of a classification with these answers; labels are the names that occur, in order of name."""
    labels = tuple(sorted({*expected, *predicted}))
    codes = {name: at for at, name in enumerate(labels)}
    columns = {
        "predicted": np.array([codes[name] for name in predicted]),
        "expected": np.array([codes[name] for name in expected]),
        "reciprocal_rank": np.array([1.0 if a == b else 0.5 for a, b in zip(expected, predicted, strict=True)]),
    }
    return Evaluation(
        task="sample",
        kind="classification",
        metric=metric,
        labels=labels,
        predictions=tuple(predicted),
        targets=tuple(expected),
        columns=columns,
        data_digest=data_digest,
        seconds=0.0,
    )


def evaluation_with(*, right: int, wrong: int, first_wrong: int = 0) -> Evaluation:
    """`right + wrong` rows of one label, of which the `wrong` from `first_wrong` on are answered with another."""
    rows = right + wrong
    is_wrong = [first_wrong <= row < first_wrong + wrong for row in range(rows)]
    return evaluation_of(["yes"] * rows, ["no" if each else "yes" for each in is_wrong])
