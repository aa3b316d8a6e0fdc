"""From answer states to log-probabilities, for rows of many tasks at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.transfer import to_device
from promptstore.tuning.passes import Item

# Logits over the vocabulary that exist at a time, in entries: 64 Mi are 256 MiB in float32.
LOGITS_AT_ONCE = 1 << 26


def label_log_probabilities(model: FrozenModel, states: Tensor, label_token_ids: Sequence[int]) -> Tensor:
    """Log-softmax over the labels' tokens alone. states: [N, H]. Returns float32 [N, K]."""
    weight = model.head.weight
    ids = to_device(label_token_ids, weight.device)
    return torch.log_softmax(model.head.logits_of(states.to(weight.device), ids), dim=-1)


def token_log_probabilities(model: FrozenModel, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-softmax over the vocabulary, read at `ids`. states: [N, H]; ids: [N].

    Returns float32 [N] and bool [N], whether the token is the likeliest of all. Logits of few positions exist at a
    time; the backward pass computes them again.
    """
    rows = max(1, LOGITS_AT_ONCE // model.vocabulary_size)
    if len(ids) <= rows:
        return _read(model, states, ids)
    parts = [
        checkpoint(_read, model, part, wanted, use_reentrant=False)
        for part, wanted in zip(torch.split(states, rows), torch.split(ids, rows), strict=True)
    ]
    return torch.cat([each for each, _ in parts]), torch.cat([each for _, each in parts])


def answer_losses(
    model: FrozenModel, states: Tensor, items: Sequence[Item], label_token_ids: Sequence[Sequence[int]]
) -> Tensor:
    """Cross-entropy of each row's answer, summed over its tokens: float32 [I].

    states: as `OpenPass.states` gave them for `items`. label_token_ids: per group, the labels to choose between; empty
    where the answer is one of all tokens.
    """
    restricted = [bool(label_token_ids[item.group]) for item in items]
    losses = torch.zeros(len(items), device=model.head.weight.device)
    states = states.to(losses.device)
    for group in sorted({item.group for item, is_restricted in zip(items, restricted, strict=True) if is_restricted}):
        rows = [at for at, item in enumerate(items) if item.group == group]
        places = _places(items, rows, losses.device)
        scores = label_log_probabilities(model, states.index_select(0, places), label_token_ids[group])
        labels = to_device([items[at].example.label for at in rows], losses.device)
        picked = scores.gather(1, labels[:, None])[:, 0]
        losses = losses.index_add(0, to_device(rows, losses.device), -picked)
    if others := [at for at, is_restricted in enumerate(restricted) if not is_restricted]:
        ids = [index for at in others for index in items[at].example.answer_ids]
        owners = [at for at in others for _ in items[at].example.answer_ids]
        chosen = states.index_select(0, _places(items, others, losses.device))
        picked, _ = token_log_probabilities(model, chosen, to_device(ids, losses.device))
        losses = losses.index_add(0, to_device(owners, losses.device), -picked)
    return losses


def _read(model: FrozenModel, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.log_softmax(model.head.logits(states), dim=-1)
    return scores.gather(1, ids[:, None])[:, 0], scores.argmax(dim=-1) == ids


def _places(items: Sequence[Item], rows: Sequence[int], device: torch.device) -> Tensor:
    """Where the answer states of some rows lie among those of all."""
    starts = [0]
    for item in items:
        starts.append(starts[-1] + len(item.example.answer_ids))
    return to_device([place for row in rows for place in range(starts[row], starts[row + 1])], device)
