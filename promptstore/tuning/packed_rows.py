"""One forward pass over rows that lie end to end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.last_layer import feed_forward_at
from promptstore.lm.transfer import to_device
from promptstore.tuning.packed_attention import IMPLEMENTATION, Packing, attend
from promptstore.tuning.passes import Item

Layers = Mapping[int, Tensor]


def packing_of(
    model: FrozenModel,
    lengths: Sequence[int],
    starts: Sequence[int],
    groups: Sequence[int] | None,
    prefix_keys: Layers,
    prefix_values: Layers,
    ahead: Packing | None = None,
) -> Packing:
    """lengths: tokens of each row. starts: positions before each. The others as in `Packing`."""
    width = max(lengths)
    slots = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
    positions = torch.cat([torch.arange(length) + start for start, length in zip(starts, lengths, strict=True)])
    return Packing(
        slots=to_device(slots, model.device),
        positions=to_device(positions, model.device),
        rows=len(lengths),
        width=width,
        starts=to_device(starts, model.device),
        groups=None if groups is None else to_device(groups, model.device),
        prefix_keys=prefix_keys,
        prefix_values=prefix_values,
        ahead=ahead,
    )


def run_rows(model: FrozenModel, embedded: Tensor, packing: Packing, read: Sequence[int] = ()) -> Tensor:
    """Last hidden states [R, H], contiguous, of rows end to end. embedded: [1, all, H], with what is ahead of the rows.

    read: whose states, among the rows' tokens.
    """
    positions = packing.positions if packing.ahead is None else torch.cat([packing.ahead.positions, packing.positions])
    places = to_device(torch.tensor(read, dtype=torch.long), model.device) + len(positions) - len(packing.positions)
    AttentionInterface.register(IMPLEMENTATION, attend)
    with attention_named(model.network, IMPLEMENTATION), feed_forward_at(model.network, places):
        outputs = model.run(inputs_embeds=embedded, position_ids=positions[None], use_cache=False, packing=packing)
    hidden: Tensor = outputs.last_hidden_state[0]
    return hidden.index_select(0, places.to(hidden.device))


def answer_places(lengths: Sequence[int], items: Sequence[Item]) -> list[int]:
    """Where answer tokens are read from, which ends every row, among the tokens of all rows: [A]."""
    return [
        place
        for item, end in zip(items, accumulate(lengths), strict=True)
        for place in range(end - len(item.example.answer_ids), end)
    ]


@contextmanager
def attention_named(network: Any, name: str) -> Iterator[None]:
    """The network's attention is the one registered as `name` within this block; blocks may be nested."""
    before = network.config._attn_implementation  # noqa: SLF001 - transformers has a setter and no getter
    if before == name:
        yield
        return
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)
