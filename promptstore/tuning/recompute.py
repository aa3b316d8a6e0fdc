"""Activations computed again in the backward pass instead of kept: a third more time, a fraction of the memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.packed_rows import packed_attention


@contextmanager
def recomputed_layers(model: FrozenModel, *, is_on: bool) -> Iterator[None]:
    """Within this block a layer keeps its inputs alone, if `is_on`.

    transformers' own switch works in training mode only, which would also turn dropout on.
    """
    layers = [each for each in model.network.modules() if isinstance(each, GradientCheckpointingLayer)] if is_on else []
    for layer in layers:
        layer.forward = partial(checkpoint, partial(_run, model.network, layer.forward), use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back


def _run(network: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward pass, now or later: by then the network's attention is its own again, and must be ours."""
    if "packing" not in kwargs:
        return forward(*args, **kwargs)
    with packed_attention(network):
        return forward(*args, **kwargs)
