"""The last layer's feed-forward part, where somebody reads what comes out of it, and nowhere else.

Answers are read from a few positions. Of the others the last layer's attention needs keys and values, and nothing needs
more: their feed-forward part, the largest of a layer, is work that nobody sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def feed_forward_at(network: Any, positions: Tensor) -> Iterator[None]:
    """Within this block the last layer's feed-forward part adds nothing to positions other than `positions`.

    positions: [R], of a single sequence, [1, N, H]. A network without such a part runs as ever.
    """
    part = _last_feed_forward(network)
    if part is None:
        yield
        return
    forward = part.forward

    def sparse(hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden).index_copy(1, positions, forward(hidden.index_select(1, positions)))

    part.forward = sparse
    try:
        yield
    finally:
        del part.forward


def _last_feed_forward(network: Any) -> nn.Module | None:
    """By the names that transformers gives: a dense part, which takes and gives one tensor."""
    layers = getattr(network.base_model, "layers", None)
    part = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    return part if isinstance(part, nn.Module) and type(part).__name__.endswith("MLP") else None
