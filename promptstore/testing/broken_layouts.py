"""Batches laid out wrongly on purpose: what the equality tests must notice."""

from collections.abc import Callable, Sequence

from torch import Tensor

from promptstore.lm.keys_values import KeysValues, aligned
from promptstore.lm.packed import PackedRows
from promptstore.runtime.cached import CachedDecoding, PackedDecoding, split
from promptstore.runtime.row import Row


class PaddingCounted(CachedDecoding):
    """Padding in front of shorter prompts is attended to and counted as positions."""

    def open_rows(self, rows: Sequence[Row]) -> tuple[Callable[[], Sequence[KeysValues]], Tensor]:
        parts = [split(row) for row in rows]
        cache = aligned([known for known, _ in parts], room=max(64, *(len(ids) for _, ids in parts)))
        cache.starts = [0] * cache.rows
        states = cache.run(self._model, [ids for _, ids in parts])
        return lambda: [cache.slots(row) for row in range(cache.rows)], states


class NeighboursPrompt(PackedDecoding):
    """Rows take the keys and values of their neighbour's prompt."""

    def _run(self, rows: Sequence[Row], *, is_kept: bool) -> tuple[PackedRows, Tensor]:
        neighbours = [*rows[1:], rows[0]]
        swapped = [row._replace(prompt=other.prompt) for row, other in zip(rows, neighbours, strict=True)]
        return super()._run(swapped, is_kept=is_kept)
