"""How well the answers in a file fit the labels that their rows carry."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from promptstore.batch.answers import ScoredVersion
from promptstore.tuning.metrics import METRICS, Columns, exact_match, token_f1


def judge(version: ScoredVersion, lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric that answers alone decide (a perplexity is not among them), over the rows that carry a label.

    lines: as `score` writes them. Nothing where no row has a label.
    """
    labelled = [line for line in lines if "expected" in line]
    if not labelled:
        return {}
    columns = _label_columns(version, labelled) if version.kind == "classification" else _text_columns(labelled)
    metrics = METRICS[version.kind]
    return {name: metrics[name](columns) for name in metrics if name != "perplexity"}


def _label_columns(version: ScoredVersion, lines: list[Mapping[str, Any]]) -> Columns:
    places = {name: at for at, name in enumerate(version.labels)}
    ranks = []
    for line in lines:
        said: Mapping[str, float] = line["probabilities"]
        ranks.append(1 + sum(value > said[line["expected"]] for value in said.values()))
    return {
        "predicted": np.array([places[line["label"]] for line in lines]),
        "expected": np.array([places[line["expected"]] for line in lines]),
        "reciprocal_rank": 1.0 / np.array(ranks),
    }


def _text_columns(lines: list[Mapping[str, Any]]) -> Columns:
    pairs = [(str(line["text"]), str(line["expected"])) for line in lines]
    return {
        "exact_match": np.array([exact_match(*pair) for pair in pairs]),
        "token_f1": np.array([token_f1(*pair) for pair in pairs]),
    }
