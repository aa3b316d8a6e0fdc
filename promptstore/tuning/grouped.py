"""One sequence for each prompt, its rows behind it, and plain layers: the way of small steps on a GPU (ADR 0044).

A small step waits for the host, which launches kernels. Attention over everything that belongs to a prompt, with what
may not be seen masked, is one launch where packed rows take dozens; nothing need be compiled first. It computes pairs
that nobody sees, so large steps are packed.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.transfer import to_device
from promptstore.tuning.fused import MULTIPLE, SequencePass, windows_of
from promptstore.tuning.fused_attention import Span, ranges_of
from promptstore.tuning.packed_attention import mix
from promptstore.tuning.packed_rows import attention_named
from promptstore.tuning.passes import Group, Item, OpenPass
from promptstore.tuning.recorded import RecordedPass

# The name under which transformers finds `attend`.
IMPLEMENTATION = "promptstore_grouped_tuning"
# Above either, arithmetic outweighs launches: positions of one prompt's sequence, and pairs of positions in all.
MOST_POSITIONS, MOST_PAIRS = 2048, 2**26

Biases = Mapping[int | None, Tensor]


class GroupedPasses:
    """For decoder-only models whose architecture the packed way takes."""

    is_compiled = False

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._recorded = RecordedPass(partial(_run_sequences, model))

    def open(self, groups: Sequence[Group], in_parts: OpenPass) -> OpenPass:
        """in_parts: for steps that are not run whole, or are large."""
        return _GroupedPass(self._model, groups, in_parts, self._recorded)


class _GroupedPass(SequencePass):
    def __init__(self, model: FrozenModel, groups: Sequence[Group], in_parts: OpenPass, recorded: RecordedPass) -> None:
        super().__init__(model, groups)
        self._in_parts = in_parts
        self._recorded = recorded
        self._width = 0

    def cost(self, item: Item) -> int:
        return self._in_parts.cost(item)

    def rank(self, item: Item) -> int:
        return self._in_parts.rank(item)

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:
        if is_whole and self._is_small(items):
            return super().states(items)
        self._recorded.forget()  # what runs in parts needs the memory
        return self._in_parts.states(items, is_whole=is_whole)

    def close(self) -> None:
        self._in_parts.close()

    def _is_small(self, items: Sequence[Item]) -> bool:
        lengths = {item.group: self._groups[item.group].length for item in items}
        for item in items:
            lengths[item.group] += self.cost(item)
        width = max(lengths.values())
        return width <= MOST_POSITIONS and len(lengths) * width**2 <= MOST_PAIRS

    def _lay(self, lengths: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        self._width = -(-max(map(sum, lengths)) // MULTIPLE) * MULTIPLE
        starts = [list(accumulate(each[:-1], initial=at * self._width)) for at, each in enumerate(lengths)]
        return starts, len(lengths) * self._width

    def _forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        biases = [self._bias(spans, positions.shape[1], window, embedded) for window in windows_of(self._model)]
        sequences = embedded.view(-1, self._width, embedded.shape[-1])
        return self._recorded(sequences, positions.view(-1, self._width), *biases).flatten(0, 1)

    def _bias(self, spans: Sequence[Span], size: int, window: int | None, like: Tensor) -> Tensor:
        """0 where a query sees a key, else minus infinity: [G, 1, W, W]."""
        width = self._width
        ranges = to_device(ranges_of(spans, size, window), like.device).view(3, -1, width, 1)
        first, above, end = ranges - torch.arange(0, size, width, device=like.device).view(-1, 1, 1)
        keys = torch.arange(width, device=like.device)
        seen = ((keys >= first) & (keys <= keys[:, None])) | ((keys >= above) & (keys < end))
        return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, -torch.inf)[:, None]


def _run_sequences(model: FrozenModel, embedded: Tensor, positions: Tensor, *biases: Tensor) -> Tensor:
    """Last hidden states. embedded: [G, W, H]. positions: [G, W]. biases: [G, 1, W, W], by `windows_of`."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    with attention_named(model.network, IMPLEMENTATION):
        outputs = model.run(
            inputs_embeds=embedded,
            position_ids=positions,
            use_cache=False,
            biases=dict(zip(windows_of(model), biases, strict=True)),
        )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def attend(
    module: Any,  # noqa: ARG001 - transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    biases: Biases,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. query: [G, heads, W, D]; key, value: [G, K, W, D], positions applied.

    biases: by sliding window, [G, 1, W, W].
    """
    if attention_mask is not None or s_aux is not None:
        raise ValueError("an attention mask or sinks of the model's own: this architecture must be padded")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed = mix(query, key, value, biases[sliding_window], scale, softcap)
    return mixed.transpose(1, 2).contiguous(), None
