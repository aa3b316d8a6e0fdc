"""Rows of different lengths end to end in one sequence, so that no padding is computed at all.

On a CPU nearly all of a forward pass is matrix products over tokens, and padding costs as much as text. Here the
products see one row of all tokens; only attention knows rows, each over its own prompt's keys and values. What it is
over is the thread's, not an argument of the network, so that a compiled network (`promptstore.lm.compiled`) serves any
rows.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.keys_values import BatchCache, KeysValues
from promptstore.lm.last_layer import feed_forward_at
from promptstore.lm.row_attention import AttentionOver

ATTENTION = "promptstore_packed"
_here = threading.local()


class Attended(Protocol):
    """What a pass attends to. It is asked once by each layer, the first one first."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """query: [1, heads, N, D]; key, value: [1, K, N, D or D'], of N new tokens. Returns [1, N, heads, D']."""


@contextmanager
def attending(rows: Attended) -> Iterator[None]:
    """Within this block, on this thread, networks with packing attend to `rows`."""
    _here.rows = rows
    try:
        yield
    finally:
        del _here.rows


def attended() -> Attended | None:
    """What this thread's pass attends to."""
    return getattr(_here, "rows", None)


@dataclass(slots=True, eq=False)
class PackedRows:
    """Rows of one forward pass. edges: where each begins and ends among the new tokens.

    is_kept: whether what was computed of them can be had afterwards. kernel: what attends, torch's attention if `None`.
    """

    known: Sequence[KeysValues]
    edges: Sequence[tuple[int, int]]
    is_kept: bool = True
    kernel: AttentionOver | None = None
    _layer: int = 0
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def whole(self) -> list[KeysValues]:
        """Copies of all that is known of each row now, its new tokens included."""
        keys, values = (torch.stack(layers) for layers in zip(*self._kept, strict=True))
        return [
            KeysValues(
                torch.cat([row.keys, keys[:, :, start:stop]], dim=2),
                torch.cat([row.values, values[:, :, start:stop]], dim=2),
            )
            for row, (start, stop) in zip(self.known, self.edges, strict=True)
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        layer, self._layer = self._layer, self._layer + 1
        if self.is_kept:  # copies, for a compiled pass uses the memory again
            self._kept.append((key[0].clone(), value[0].clone()))
        if self.kernel is not None and self.kernel.takes(query, key, value, layer, window):
            return self.kernel(query, key, value, layer, scale=scale, window=window)
        output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        for row, (start, stop) in zip(self.known, self.edges, strict=True):
            keys = torch.cat([row.keys[layer], key[0, :, start:stop]], dim=1)
            values = torch.cat([row.values[layer], value[0, :, start:stop]], dim=1)
            mask = self._mask(row.length, stop - start, window, query)
            found = _attention_over(query[:, :, start:stop], keys[None], values[None], mask, scale)
            output[:, start:stop] = found.transpose(1, 2)
        return output

    def _mask(self, known: int, new: int, window: int | None, like: Tensor) -> Tensor:
        """What each of `new` tokens sees of the `known` before it and of themselves: 0 or minus infinity."""
        key = (known, new, window)
        if key not in self._masks:
            distance = torch.arange(known, known + new)[:, None] - torch.arange(known + new)[None]
            is_hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            self._masks[key] = torch.zeros(new, known + new).masked_fill(is_hidden, float("-inf")).to(like)
        return self._masks[key]


@dataclass(slots=True, eq=False)
class SteppedRows:
    """One new token for each row of a cache, in the slot behind its last one. kernel: as in `PackedRows`."""

    cache: BatchCache
    kernel: AttentionOver | None = None
    _layer: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        layer, self._layer = self._layer, self._layer + 1
        keys, values = self.cache.layer(layer, room=1)
        keys[:, :, -1], values[:, :, -1] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        if self.kernel is not None and self.kernel.takes(query, key, value, layer, window):
            return self.kernel(query, key, value, layer, scale=scale, window=window)
        found = _attention_over(query.transpose(0, 2), keys, values, self._mask(window, query), scale)
        return found.permute(2, 0, 1, 3)

    def _mask(self, window: int | None, like: Tensor) -> Tensor:
        """What each row's new token sees: 0 or minus infinity, [R, 1, 1, slots]."""
        if window not in self._masks:
            end, starts = self.cache.end, self.cache.starts
            first = [start if window is None else max(start, end + 1 - window) for start in starts]
            is_hidden = torch.arange(min(starts), end + 1)[None] < torch.tensor(first)[:, None]
            mask = torch.zeros(is_hidden.shape).masked_fill(is_hidden, float("-inf"))
            self._masks[window] = mask[:, None, None].to(like)
        return self._masks[window]


def enable_packing(model: FrozenModel) -> None:
    """Makes the network take packed rows. Everything else it computes stays as it was.

    Raises:
        InvalidInputError: the network's attention is not torch's own, so it cannot be replaced without change.
    """
    network = model.network
    if network.config._attn_implementation not in {"sdpa", ATTENTION}:  # noqa: SLF001 - there is no public reader
        raise InvalidInputError(f"{type(network).__name__} has an attention of its own")
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    network.set_attn_implementation(ATTENTION)


def disable_packing(model: FrozenModel) -> None:
    """Undoes `enable_packing`."""
    model.network.set_attn_implementation("sdpa")


@torch.inference_mode()
def run_packed(
    model: FrozenModel,
    known: Sequence[KeysValues],
    inputs: Sequence[Sequence[int]],
    suffixes: Sequence[Tensor | None] = (),
    *,
    is_kept: bool = True,
) -> tuple[PackedRows, Tensor]:
    """Runs each row's tokens behind what is known of its start; for a model with packing enabled.

    suffixes: per row embeddings [P, H] that follow its tokens; none if not given. is_kept: for rows that will be
    continued. Returns the rows and the hidden state after each one's last token, contiguous [R, H].
    """
    suffixes = suffixes or [None] * len(inputs)
    lengths = [len(ids) + (0 if each is None else len(each)) for ids, each in zip(inputs, suffixes, strict=True)]
    edges = list(pairwise(accumulate(lengths, initial=0)))
    rows = PackedRows(known, edges, is_kept, _kernel(model, known, edges))
    positions = [torch.arange(row.length, row.length + length) for row, length in zip(known, lengths, strict=True)]
    last = torch.tensor([stop - 1 for _, stop in edges], device=model.device)
    hidden = _run(model, rows, _read(model, inputs, suffixes), torch.cat(positions), last)
    return rows, hidden[last].contiguous()


@torch.inference_mode()
def step_packed(model: FrozenModel, cache: BatchCache, token_ids: Sequence[int]) -> Tensor:
    """Appends one token to every row of a cache; for a model with packing enabled.

    Returns the hidden states of these tokens, [R, H]. A step that raises leaves the cache as it was.
    """
    cache.make_room(1)
    positions = torch.tensor([cache.end - start for start in cache.starts])
    known = [cache.slots(row) for row in range(cache.rows)]
    rows = SteppedRows(cache, _kernel(model, known, [(row, row + 1) for row in range(cache.rows)]))
    hidden = _run(model, rows, {"input_ids": torch.tensor([token_ids], device=model.device)}, positions)
    cache.advance(1)
    return hidden


def _kernel(model: FrozenModel, known: Sequence[KeysValues], edges: Sequence[tuple[int, int]]) -> AttentionOver | None:
    if model.row_attention is None:
        return None
    return model.row_attention.over([(row.keys, row.values) for row in known], edges)


def _run(
    model: FrozenModel, rows: Attended, read: dict[str, Tensor], positions: Tensor, last: Tensor | None = None
) -> Tensor:
    """The hidden state of every new token, [N, H]. positions: [N]. last: of all, those that are read."""
    with attending(rows):
        if model.compiled is not None:
            embedded = read["inputs_embeds"] if "inputs_embeds" in read else model.embed(read["input_ids"])
            return model.compiled(model.network.base_model, embedded, positions[None].to(model.device))[0]
        extra = {"position_ids": positions[None].to(model.device)} if model.takes_positions else {}
        # Four dimensions: taken as it is, so that no mask is made; attention makes its own.
        unread_mask = torch.zeros((1, 1, 1, 1), device=model.device, dtype=model.dtype)
        with feed_forward_at(model.network, last):
            outputs = model.run(**read, attention_mask=unread_mask, use_cache=False, **extra)
    hidden: Tensor = outputs.last_hidden_state[0]
    return hidden


def _read(model: FrozenModel, inputs: Sequence[Sequence[int]], suffixes: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """What the network reads: token ids, or, where a row ends in a prompt, embeddings."""
    ids = torch.tensor([[token for ids in inputs for token in ids]], device=model.device)
    if all(suffix is None for suffix in suffixes):
        return {"input_ids": ids}
    parts: list[Tensor] = []
    for tokens, suffix in zip(torch.split(model.embed(ids)[0], [len(ids) for ids in inputs]), suffixes, strict=True):
        parts += [tokens] if suffix is None else [tokens, suffix.to(tokens.dtype)]
    return {"inputs_embeds": torch.cat(parts)[None]}


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """That of the thread's pass, where there is one; else torch's. Shapes as `Attended.attend` has them."""
    rows = attended()
    if rows is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    scale, window = options_of(module, options)
    return rows.attend(query, key, value, scale=scale, window=window), None


def options_of(module: torch.nn.Module, options: dict[str, Any]) -> tuple[float | None, int | None]:
    """The scale and the window that a layer's attention has.

    Raises:
        InvalidInputError: it has something else that rows would not follow.
    """
    if options.get("position_bias") is not None or options.get("softcap") is not None:
        raise InvalidInputError(f"{type(module).__name__} adds a bias or a cap to its attention")
    return options.get("scaling"), options.get("sliding_window")


def _attention_over(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """query: [B, heads, N, D]; keys, values: [B, K, C, D or D']; mask: as torch takes it. Returns [B, heads, N, D']."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != keys.shape[1]
    )
