"""Prompts and rows in one sequence and one forward pass through compiled layers: the way of a GPU (ADR 0044).

A prompt's keys and values are computed next to the rows that see them, once for all rows of a part; parts hold whole
groups as far as they go. Half as many kernels are launched as by two passes, and a launch is what a small step waits
for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.fused_attention import IMPLEMENTATION, Span, attend, block_masks, lay_end_to_end
from promptstore.tuning.packed_rows import attention_named
from promptstore.tuning.passes import Group, Item, OpenPass


def may_fuse(model: FrozenModel) -> bool:
    """All of the model is on one GPU."""
    places = {each.device for each in model.network.parameters()}
    return len(places) == 1 and next(iter(places)).type == "cuda"


@dataclass(slots=True, eq=False)
class _Sequence:
    """What one forward pass computes. ids: [N], 0 at virtual tokens, whose places are `virtual`, prompt by prompt."""

    ids: list[int]
    spans: list[Span] = field(default_factory=list)
    virtual: list[int] = field(default_factory=list)
    prompts: list[Tensor] = field(default_factory=list)

    def place_prefix(self, group: Group, start: int) -> int:
        """Puts a group's prompt, and the tokens that its rows share, at `start`; returns the index of the span."""
        self.spans.append(Span(start, group.length))
        if group.prompt is not None:
            self.prompts.append(group.prompt)
            self.virtual += range(start, start + group.num_virtual_tokens)
        self.ids[start + group.num_virtual_tokens : start + group.length] = group.prefix_ids
        return len(self.spans) - 1

    def place_row(self, tokens: Sequence[int], start: int, group: Group, parent: int) -> int:
        """Returns the place behind its last token."""
        self.spans.append(Span(start, len(tokens), group.length, parent))
        self.ids[start : start + len(tokens)] = tokens
        return start + len(tokens)


class FusedPasses:
    """For decoder-only models on one GPU whose architecture the packed way takes."""

    is_compiled = True

    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        layers = [each for each in model.network.modules() if isinstance(each, GradientCheckpointingLayer)]
        self._compiled = {layer: torch.compile(layer._call_impl, dynamic=True) for layer in layers}  # noqa: SLF001

    def open(self, groups: Sequence[Group], in_parts: OpenPass) -> OpenPass:  # noqa: ARG002 - parts cost no more
        return _FusedPass(self, self._model, groups)

    @contextmanager
    def compiled_layers(self) -> Iterator[None]:
        """Within this block the layers run compiled, whole, where they are on a GPU."""
        is_on = self._model.device.type == "cuda"
        for layer, call in self._compiled.items():
            layer._compiled_call_impl = call if is_on else None  # noqa: SLF001 - torch has no other way in or out
        try:
            yield
        finally:
            for layer in self._compiled:
                layer._compiled_call_impl = None  # noqa: SLF001


class SequencePass(ABC):
    """What the compiled way and the plain one (`promptstore.tuning.grouped`) have in common."""

    def __init__(self, model: FrozenModel, groups: Sequence[Group]) -> None:
        self._model = model
        self._groups = groups

    def cost(self, item: Item) -> int:
        return len(item.example.tokens) - len(self._groups[item.group].prefix_ids)

    def rank(self, item: Item) -> int:
        return item.group

    def states(self, items: Sequence[Item], *, is_whole: bool = False) -> Tensor:  # noqa: ARG002 - parts are alike
        of_group: dict[int, list[int]] = {}
        for at, item in enumerate(items):
            of_group.setdefault(item.group, []).append(at)
        rows = [item.example.tokens[len(self._groups[item.group].prefix_ids) :] for item in items]
        lengths = [[self._groups[group].length, *(len(rows[at]) for at in own)] for group, own in of_group.items()]
        starts, size = self._lay(lengths)
        sequence, ends = _Sequence([0] * size), [0] * len(items)
        for (at_group, own), (first, *places) in zip(of_group.items(), starts, strict=True):
            group = self._groups[at_group]
            parent = sequence.place_prefix(group, first)
            for at, place in zip(own, places, strict=True):
                ends[at] = sequence.place_row(rows[at], place, group, parent)
        answers = [
            place
            for item, end in zip(items, ends, strict=True)
            for place in range(end - len(item.example.answer_ids), end)
        ]
        hidden = self._run(sequence)
        return hidden.index_select(0, torch.tensor(answers, device=hidden.device))

    def _run(self, sequence: _Sequence) -> Tensor:
        """Last hidden states [N, H]."""
        model, size = self._model, len(sequence.ids)
        positions = np.zeros(size, np.int64)
        for span in sequence.spans:
            positions[span.start : span.end] = np.arange(span.position, span.position + span.length)
        known = torch.from_numpy(np.stack([np.array(sequence.ids), positions])).to(model.device)
        embedded = model.embed(known[:1])
        if sequence.prompts:
            places = torch.tensor(sequence.virtual, device=model.device)
            embedded = embedded.index_copy(1, places, torch.cat(sequence.prompts)[None].to(embedded.dtype))
        window = getattr(model.network.config.get_text_config(), "sliding_window", None)
        windows = sorted({None, window}, key=str)
        return self._forward(embedded, known[1:], sequence.spans, windows)

    @abstractmethod
    def _lay(self, lengths: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        """Starts of every group's spans, by their lengths; and how many positions there are."""

    @abstractmethod
    def _forward(
        self, embedded: Tensor, positions: Tensor, spans: Sequence[Span], windows: Sequence[int | None]
    ) -> Tensor:
        """Last hidden states [N, H]. embedded: [1, N, H]. positions: [1, N]."""


class _FusedPass(SequencePass):
    def __init__(self, passes: FusedPasses, model: FrozenModel, groups: Sequence[Group]) -> None:
        super().__init__(model, groups)
        self._passes = passes

    def close(self) -> None: ...

    def _lay(self, lengths: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        return lay_end_to_end(lengths)

    def _forward(
        self, embedded: Tensor, positions: Tensor, spans: Sequence[Span], windows: Sequence[int | None]
    ) -> Tensor:
        masks = block_masks(spans, positions.shape[1], windows, self._model.device)
        AttentionInterface.register(IMPLEMENTATION, attend)
        with attention_named(self._model.network, IMPLEMENTATION), self._passes.compiled_layers():
            outputs = self._model.run(inputs_embeds=embedded, position_ids=positions, use_cache=False, masks=masks)
        hidden: Tensor = outputs.last_hidden_state[0]
        return hidden
