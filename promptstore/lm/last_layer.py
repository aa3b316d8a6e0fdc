"""The last layer's feed-forward part, where somebody reads what comes out of it, and nowhere else.

Answers are read from a few positions. Of the others the last layer's attention needs keys and values, and nothing needs
more: their feed-forward part, the largest of a layer, is work that nobody sees.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class _Sparse:
    """For one thread: others may run the same network meanwhile, a model server's say, and get the whole layer."""

    part: nn.Module
    positions: Tensor
    thread: int

    @property
    def is_ours(self) -> bool:
        return self.thread == get_ident()

    def __call__(self, hidden: Tensor) -> Tensor:
        if not self.is_ours:
            return type(self.part).forward(self.part, hidden)  # type: ignore[no-any-return]
        read = type(self.part).forward(self.part, hidden.index_select(1, self.positions))
        return torch.zeros_like(hidden).index_copy(1, self.positions, read)


@contextmanager
def feed_forward_at(network: Any, positions: Tensor | None) -> Iterator[None]:
    """Within this block, on this thread, the last layer's feed-forward part adds nothing but at `positions`.

    positions: [R] of a single sequence, [1, N, H]; `None` changes nothing. A network without such a part, or one that
    is compiled or that something else has a hand in, runs as ever.
    """
    part = None if positions is None else _last_feed_forward(network)
    if part is None or positions is None:
        yield
        return
    before = vars(part).get("forward")
    mine = part.forward = _Sparse(part, positions, get_ident())
    try:
        yield
    finally:
        if vars(part).get("forward") is mine:
            vars(part).pop("forward", None)
            if before is not None and before.is_ours:
                part.forward = before


def positions_of_feed_forward(network: Any) -> Tensor | None:
    """What `feed_forward_at` was told, within its block."""
    part = _last_feed_forward(network)
    found = None if part is None else vars(part).get("forward")
    return found.positions if isinstance(found, _Sparse) and found.is_ours else None


def _last_feed_forward(network: Any) -> nn.Module | None:
    """By the names that transformers gives: a dense part, which takes and gives one tensor."""
    layers = getattr(network.base_model, "layers", None)
    part = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if not isinstance(part, nn.Module) or not type(part).__name__.endswith("MLP"):
        return None
    is_another = not isinstance(vars(part).get("forward"), _Sparse | None)
    is_compiled = part._compiled_call_impl is not None  # noqa: SLF001 - torch has no public reader
    return None if is_another or is_compiled else part
