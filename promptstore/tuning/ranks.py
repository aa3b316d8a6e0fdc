"""Several processes as one fit, each with a GPU, under whatever launcher made their process group (torchrun, say).

Every process holds the same prompts and takes its share of each step's rows. What travels is gradients of prompts, some
kilobytes a step: the model's weights are in every process and never move.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed


def count() -> int:
    """How many processes there are; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return count() == 1 or distributed.get_rank() == 0


def own_share(rows: int) -> range:
    """Which of so many rows are this process's; rows of like length tend to lie together, so they are dealt out."""
    return range(rows) if count() == 1 else range(distributed.get_rank(), rows, count())


def add_up(tensors: Sequence[Tensor]) -> None:
    """Puts in place of each tensor its sum over all processes. Waits for the slowest of them."""
    if count() == 1:
        return
    device = tensors[0].device
    flat = torch.cat([each.detach().to(device).float().reshape(-1) for each in tensors])
    distributed.all_reduce(flat)
    for each, total in zip(tensors, torch.split(flat, [each.numel() for each in tensors]), strict=True):
        with torch.no_grad():
            each.copy_(total.view(each.shape))


def collect(found: Mapping[int, Any]) -> dict[int, Any]:
    """What all processes found, the same in each of them."""
    if count() == 1:
        return dict(found)
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, dict(found))
    return {key: value for part in parts for key, value in part.items()}
