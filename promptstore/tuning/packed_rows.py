"""One forward pass over rows that lie end to end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from promptstore.lm.frozen import FrozenModel
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
) -> Packing:
    """lengths: tokens of each row. starts: positions before each. The others as in `Packing`."""
    width = max(lengths)
    slots = torch.cat([torch.arange(length) + row * width for row, length in enumerate(lengths)])
    return Packing(
        slots=slots.to(model.device),
        rows=len(lengths),
        width=width,
        starts=torch.tensor(starts, device=model.device),
        groups=None if groups is None else torch.tensor(groups, device=model.device),
        prefix_keys=prefix_keys,
        prefix_values=prefix_values,
    )


def run_rows(model: FrozenModel, embedded: Tensor, lengths: Sequence[int], packing: Packing) -> Tensor:
    """Last hidden states [1, N, H] of rows end to end. embedded: [1, N, H]."""
    within = torch.cat([torch.arange(length) for length in lengths]).to(model.device)
    starts = packing.starts.repeat_interleave(torch.tensor(lengths, device=model.device))
    with packed_attention(model.network):
        outputs = model.network.base_model(
            inputs_embeds=embedded,
            position_ids=(within + starts)[None],
            use_cache=False,
            return_dict=True,
            packing=packing,
        )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def answer_states(hidden: Tensor, lengths: Sequence[int], items: Sequence[Item]) -> Tensor:
    """The states that answer tokens are read from, which end every row: contiguous [A, H]. hidden: [1, N, H]."""
    answers = [
        place
        for item, end in zip(items, accumulate(lengths), strict=True)
        for place in range(end - len(item.example.answer_ids), end)
    ]
    return hidden[0].index_select(0, torch.tensor(answers, device=hidden.device))


@contextmanager
def packed_attention(network: Any) -> Iterator[None]:
    """The network's attention is ours within this block; blocks may be nested."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    before = network.config._attn_implementation  # noqa: SLF001 - transformers has a setter and no getter
    if before == IMPLEMENTATION:
        yield
        return
    network.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        network.set_attn_implementation(before)
