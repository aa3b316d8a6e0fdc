"""Activations computed again in the backward pass instead of kept: a third more time, a fraction of the memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.last_layer import feed_forward_at, positions_of_feed_forward
from promptstore.tuning.packed_rows import attention_named


@contextmanager
def recomputed_layers(model: FrozenModel, *, is_on: bool) -> Iterator[None]:
    """Within this block a layer keeps its inputs alone, if `is_on`.

    transformers' own switch works in training mode only, which would also turn dropout on.
    """
    layers = [each for each in model.network.modules() if isinstance(each, GradientCheckpointingLayer)] if is_on else []
    for layer in layers:
        layer.forward = partial(_kept_inputs, model.network, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back


def _kept_inputs(network: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward pass, now and later: by then the network is itself again, and must be as now."""
    name = network.config._attn_implementation  # noqa: SLF001 - transformers has a setter and no getter
    positions = positions_of_feed_forward(network)

    def run(*args: Any, **kwargs: Any) -> Any:
        with attention_named(network, name), feed_forward_at(network, positions):
            return forward(*args, **kwargs)

    # Frozen layers draw no random numbers, and their state cannot be read while a step is recorded.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
