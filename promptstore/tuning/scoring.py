"""Scores of labelled rows behind many prompts at once, as the columns that metrics are computed from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.tuning import ranks
from promptstore.tuning.answers import label_log_probabilities, token_log_probabilities
from promptstore.tuning.examples import ExampleSet
from promptstore.tuning.metrics import Columns, label_columns
from promptstore.tuning.passes import Group, Item, Passes, split_by_cost
from promptstore.tuning.token_budget import TokenBudget


def score(
    model: FrozenModel,
    passes: Passes,
    budget: TokenBudget,
    prompts: Sequence[Tensor | None],
    sets: Sequence[ExampleSet],
) -> list[Columns]:
    """The columns of each set behind its prompt [P, H], rows in their order.

    Classification: `predicted`, `expected`, `reciprocal_rank`, `log_probability` of the expected label among the
    labels, and `label_log_probability` [N, K]. Generation, by teacher forcing: `log_probability` summed over the
    target, `target_tokens`, and `exact_match`, 1 where greedy decoding would give the target token by token.
    """
    groups = [
        Group.of(None if prompt is None else prompt.detach(), each) for prompt, each in zip(prompts, sets, strict=True)
    ]
    items = [Item(at, example) for at, each in enumerate(sets) for example in each.examples]
    own = ranks.own_share(len(items))
    found = ranks.collect(budget.run(lambda tokens: _score(model, passes, groups, sets, items, own, tokens)))
    columns = []
    start = 0
    for each in sets:
        rows = np.stack([found[at] for at in range(start, start + len(each))])
        if each.label_token_ids:
            columns.append(label_columns(np.array([example.label for example in each.examples]), rows))
        else:
            columns.append(_target_columns(rows))
        start += len(each)
    return columns


@torch.no_grad()
def _score(
    model: FrozenModel,
    passes: Passes,
    groups: Sequence[Group],
    sets: Sequence[ExampleSet],
    items: Sequence[Item],
    own: Sequence[int],
    tokens: int,
) -> dict[int, npt.NDArray[Any]]:
    """What is read of the rows `own`, by their places among all."""
    open_pass = passes.open(groups)
    found: dict[int, npt.NDArray[Any]] = {}
    for part in split_by_cost(open_pass, [items[at] for at in own], tokens) if own else []:
        places = [own[at] for at in part]
        chosen = [items[at] for at in places]
        states = open_pass.states(chosen).to(model.head.weight.device)
        found |= dict(zip(places, _read(model, sets, chosen, states), strict=True))
    return found


def _read(
    model: FrozenModel, sets: Sequence[ExampleSet], items: Sequence[Item], states: Tensor
) -> list[npt.NDArray[Any]]:
    """Per row: the log-probabilities of its labels, or of its target: sum, number of tokens, all likeliest."""
    rows = torch.split(states, [len(item.example.answer_ids) for item in items])
    found: list[npt.NDArray[Any]] = [np.empty(0)] * len(items)
    for group in {item.group for item in items}:
        places = [at for at, item in enumerate(items) if item.group == group]
        own = torch.cat([rows[at] for at in places])
        if label_ids := sets[group].label_token_ids:
            values = label_log_probabilities(model, own, label_ids).cpu().numpy()
            for at, row in zip(places, values, strict=True):
                found[at] = row
            continue
        ids = torch.tensor([index for at in places for index in items[at].example.answer_ids], device=own.device)
        scores, is_likeliest = (each.cpu() for each in token_log_probabilities(model, own, ids))
        lengths = [len(items[at].example.answer_ids) for at in places]
        for at, row, likeliest in zip(
            places, torch.split(scores, lengths), torch.split(is_likeliest, lengths), strict=True
        ):
            found[at] = np.array([float(row.sum()), len(row), float(likeliest.all())])
    return found


def _target_columns(rows: npt.NDArray[Any]) -> Columns:
    return {"log_probability": rows[:, 0], "target_tokens": rows[:, 1], "exact_match": rows[:, 2]}
