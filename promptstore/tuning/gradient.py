"""The gradients of one step, for any number of prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.transfer import to_device
from promptstore.tuning import ranks
from promptstore.tuning.answers import answer_losses
from promptstore.tuning.examples import Example
from promptstore.tuning.fitting import Fitting
from promptstore.tuning.passes import Item, Passes, split_by_cost
from promptstore.tuning.token_budget import TokenBudget


@dataclass(frozen=True, slots=True, eq=False)
class StepGradients:
    """losses: [G], each prompt's mean over its rows' answer tokens, on the device. rows, positions: computed in all."""

    losses: Tensor
    rows: int
    positions: int


def backward(model: FrozenModel, passes: Passes, budget: TokenBudget, fittings: Sequence[Fitting]) -> StepGradients:
    """Leaves in every prompt's `grad` the gradient of its own mean loss over its own next rows.

    The rows of all prompts are run together, in parts of like length; weighting each row by its own prompt's count
    makes the result independent of who else takes part and of how the rows are split.
    """
    rows = [fitting.next_rows() for fitting in fittings]
    items = [Item(at, example) for at, examples in enumerate(rows) for example in examples]
    weights = [1.0 / answers for answers in map(_answer_tokens, rows)]
    own = [items[at] for at in ranks.own_share(len(items))]
    step = budget.run(lambda tokens: _backward(model, passes, fittings, own, weights, tokens))
    for fitting in fittings:
        if fitting.prompt.grad is None:
            fitting.prompt.grad = torch.zeros_like(fitting.prompt)
    ranks.add_up([step.losses, *(fitting.prompt.grad for fitting in fittings if fitting.prompt.grad is not None)])
    return StepGradients(step.losses, len(items), step.positions)


def _backward(
    model: FrozenModel,
    passes: Passes,
    fittings: Sequence[Fitting],
    items: Sequence[Item],
    weights: Sequence[float],
    tokens: int,
) -> StepGradients:
    for fitting in fittings:
        fitting.prompt.grad = None
    groups = [fitting.group for fitting in fittings]
    labels = [fitting.label_token_ids for fitting in fittings]
    open_pass = passes.open(groups)
    device = model.head.weight.device
    losses = torch.zeros(len(fittings), device=device)
    parts = split_by_cost(open_pass, items, tokens) if items else []
    for part in parts:
        chosen = [items[at] for at in part]
        owners = to_device([item.group for item in chosen], device)
        scale = to_device([weights[item.group] for item in chosen], device)
        states = open_pass.states(chosen, is_whole=len(parts) == 1)
        weighted = answer_losses(model, states, chosen, labels) * scale
        torch.autograd.backward(weighted.sum())
        losses.index_add_(0, owners, weighted.detach())
    open_pass.close()
    positions = sum(map(open_pass.cost, items)) + sum(group.length for group in groups)
    return StepGradients(losses, len(items), positions)


def _answer_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.answer_ids) for example in examples)
