"""Prompts and rows in one sequence and one forward pass through compiled layers: the way of a GPU (ADR 0044).

A prompt's keys and values are computed next to the rows that see them, once for all rows of a part; parts hold whole
groups as far as they go. Half as many kernels are launched as by two passes, and a launch is what a small step waits
for.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.transfer import to_device
from promptstore.tuning.fused_attention import (
    IMPLEMENTATION,
    Span,
    attend,
    block_masks,
    lay_end_to_end,
    mask_tensors,
)
from promptstore.tuning.packed_rows import attention_named
from promptstore.tuning.passes import Group, Item, OpenPass
from promptstore.tuning.recorded import Pass, RecordedPass

# Positions of a step up to which it waits for the host; lengths are rounded up, so that they come back to be recorded.
MOST_RECORDED, MULTIPLE = 4096, 256


def may_fuse(model: FrozenModel) -> bool:
    """All of the model is on one GPU."""
    places = {each.device for each in model.network.parameters()}
    return len(places) == 1 and next(iter(places)).type == "cuda"


def windows_of(model: FrozenModel) -> list[int | None]:
    """How far back layers see; `None` is to the beginning."""
    window = getattr(model.network.config.get_text_config(), "sliding_window", None)
    return sorted({None, window}, key=str)


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
        compiled = {layer: torch.compile(layer._call_impl, dynamic=True) for layer in layers}  # noqa: SLF001
        self._run = partial(_run_sequence, model, compiled if model.device.type == "cuda" else {})
        self._recorded = RecordedPass(self._run)

    def open(self, groups: Sequence[Group], in_parts: OpenPass) -> OpenPass:  # noqa: ARG002 - parts cost no more
        return _FusedPass(self._model, groups, self._run, self._recorded)


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
        return hidden.index_select(0, to_device(answers, hidden.device))

    def _run(self, sequence: _Sequence) -> Tensor:
        """Last hidden states [N, H]."""
        model, size = self._model, len(sequence.ids)
        positions = np.zeros(size, np.int64)
        for span in sequence.spans:
            positions[span.start : span.end] = np.arange(span.position, span.position + span.length)
        known = to_device(np.stack([np.array(sequence.ids), positions]), model.device)
        embedded = model.embed(known[:1])
        if sequence.prompts:
            places = to_device(sequence.virtual, model.device)
            embedded = embedded.index_copy(1, places, torch.cat(sequence.prompts)[None].to(embedded.dtype))
        return self._forward(embedded, known[1:], sequence.spans)

    @abstractmethod
    def _lay(self, lengths: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        """Starts of every group's spans, by their lengths; and how many positions there are."""

    @abstractmethod
    def _forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        """Last hidden states [N, H]. embedded: [1, N, H]. positions: [1, N]."""


class _FusedPass(SequencePass):
    def __init__(self, model: FrozenModel, groups: Sequence[Group], run: Pass, recorded: Pass) -> None:
        super().__init__(model, groups)
        self._run_plain, self._run_recorded = run, recorded

    def close(self) -> None: ...

    def _lay(self, lengths: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        starts, size = lay_end_to_end(lengths)
        return starts, size if size > MOST_RECORDED else -(-size // MULTIPLE) * MULTIPLE

    def _forward(self, embedded: Tensor, positions: Tensor, spans: Sequence[Span]) -> Tensor:
        size = positions.shape[1]
        masks = mask_tensors(spans, size, windows_of(self._model), self._model.device)
        run = self._run_plain if size > MOST_RECORDED else self._run_recorded
        return run(embedded, positions, *masks)[0]


def _run_sequence(
    model: FrozenModel, compiled: Mapping[Any, Any], embedded: Tensor, positions: Tensor, *masks: Tensor
) -> Tensor:
    """Last hidden states [1, N, H]. embedded: [1, N, H]. positions: [1, N]. masks: of `mask_tensors`."""
    AttentionInterface.register(IMPLEMENTATION, attend)
    with attention_named(model.network, IMPLEMENTATION), _compiled_layers(compiled):
        outputs = model.run(
            inputs_embeds=embedded,
            position_ids=positions,
            use_cache=False,
            masks=block_masks(masks, windows_of(model)),
        )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


@contextmanager
def _compiled_layers(compiled: Mapping[Any, Any]) -> Iterator[None]:
    """Within this block these layers run compiled, whole."""
    for layer, call in compiled.items():
        layer._compiled_call_impl = call  # noqa: SLF001 - torch has no other way in or out
    try:
        yield
    finally:
        for layer in compiled:
            layer._compiled_call_impl = None  # noqa: SLF001
