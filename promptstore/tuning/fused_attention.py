"""Attention over prompts and rows end to end, in one kernel of torch's flex attention.

A sequence is cut into blocks, and a block holds rows of one group alone: a prompt whose numbers are none cannot reach
another's through a product with zero. No mask is ever written out; the kernel visits the blocks that a row can see.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from promptstore.lm.transfer import to_device

# The name under which transformers finds this function.
IMPLEMENTATION = "promptstore_fused_tuning"
BLOCK = 128

Masks = Mapping[int | None, BlockMask]
Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Span:
    """A prefix, or a row behind one. start: its first token in the sequence. position: of that token in its text.
    parent: index of the span it stands behind.
    """

    start: int
    length: int
    position: int = 0
    parent: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def blocks(self) -> range:
        return range(self.start // BLOCK, -(-self.end // BLOCK))


def lay_end_to_end(groups: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Starts of every group's spans, by their lengths, each group on blocks of its own; and the size in all.

    >>> lay_end_to_end([[20, 7], [3]])
    ([[0, 20], [128]], 256)
    """
    starts, size = [], 0
    for lengths in groups:
        ends = np.cumsum([size, *lengths])
        starts.append([int(end) for end in ends[:-1]])
        size = -(-int(ends[-1]) // BLOCK) * BLOCK
    return starts, size


def mask_tensors(
    spans: Sequence[Span], size: int, windows: Sequence[int | None], device: torch.device | str
) -> list[Tensor]:
    """What each token sees: its own span up to itself, and the span it stands behind; with a window, so far back.

    size: tokens of the sequence, whole blocks. Counts [1, 1, B] and lists [1, 1, B, B] of the blocks that each block
    sees, then [3, N] for each window, as `ranges_of` gives them.
    """
    blocks = [each[None, None] for each in _visible_blocks(spans, size)]
    ranges = [ranges_of(spans, size, window) for window in windows]
    return [to_device(each, device) for each in (*blocks, *ranges)]


def block_masks(tensors: Sequence[Tensor], windows: Sequence[int | None]) -> dict[int | None, BlockMask]:
    """tensors: of `mask_tensors` for these windows."""
    counts, blocks, *ranges = tensors
    size = counts.shape[-1] * BLOCK
    return {
        window: BlockMask.from_kv_blocks(
            counts, blocks, BLOCK_SIZE=BLOCK, mask_mod=_visible(each), seq_lengths=(size, size)
        )
        for window, each in zip(windows, ranges, strict=True)
    }


def attend(
    module: Any,  # noqa: ARG001 - transformers' signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    masks: Masks,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. query: [1, heads, N, D]; key, value: [1, K, N, D], positions applied.

    masks: by sliding window, from `block_masks`.
    """
    if attention_mask is not None or s_aux is not None:
        raise ValueError("an attention mask or sinks of the model's own: this architecture must be padded")
    mixed = _kernel()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcapped(query.new_full((), softcap, dtype=torch.float32)),
        block_mask=masks[sliding_window],
        scale=scaling,
        enable_gqa=True,
    )
    return mixed.transpose(1, 2), None


def _kernel() -> Callable[..., Tensor]:
    """Within a compiled layer, part of it."""
    plain: Callable[..., Tensor] = flex_attention
    return plain if torch.compiler.is_compiling() else _compiled()


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def ranges_of(spans: Sequence[Span], size: int, window: int | None) -> Ints:
    """For each token its first visible key of its own span, and first and end of those of the span before: [3, N].

    Looked up by query alone, for a kernel asks it of every pair. What fills a block sees itself.
    """
    found = np.zeros((3, size), np.int32)
    found[0] = np.arange(size)
    for span in spans:
        reach = np.arange(span.start, span.end) - (2**30 if window is None else window - 1)
        found[0, span.start : span.end] = np.maximum(span.start, reach)
        if span.parent is not None:
            above = spans[span.parent]
            shift = above.start - above.position - (span.start - span.position)
            found[1, span.start : span.end] = np.maximum(above.start, reach + shift)
            found[2, span.start : span.end] = above.end
    return found


def _visible(ranges: Tensor) -> Visible:
    """ranges: [3, N], as `ranges_of` gives them."""
    first, above, end = ranges

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Any:
        return ((key >= first[query]) & (key <= query)) | ((key >= above[query]) & (key < end[query]))

    return sees


def _softcapped(cap: Tensor) -> Callable[..., Tensor]:
    """cap: a tensor, for a compiled kernel takes no number of its surroundings that may vary."""

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


def _visible_blocks(spans: Sequence[Span], size: int) -> tuple[Ints, Ints]:
    """For each block of queries, how many blocks of keys hold something it sees, and which: [B] and [B, B]."""
    seen = [{at} for at in range(size // BLOCK)]
    for span in spans:
        for at in span.blocks:
            seen[at].update(range(span.start // BLOCK, at + 1))
            if span.parent is not None:
                seen[at].update(spans[span.parent].blocks)
    blocks = np.zeros((len(seen), len(seen)), np.int32)
    for at, each in enumerate(seen):
        blocks[at, : len(each)] = sorted(each)
    return np.array([len(each) for each in seen], np.int32), blocks
