"""Rows whose prompts' keys and values are kept: each request computes its own tokens and nothing else."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.keys_values import ROOM, BatchCache, KeysValues, aligned, compute_keys_values
from promptstore.lm.packed import PackedRows, run_packed, step_packed
from promptstore.runtime.row import PreparedPrompt, Row, RunningRows


class CachedDecoding:
    """For decoder-only models whose cache is one key and value per position."""

    is_padded = True

    def __init__(self, model: FrozenModel) -> None:
        self._model = model

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        """A prompt that stands after the input has none of its own, only those of the template's start."""
        if not is_after:
            found = compute_keys_values(self._model, prompt, prefix_ids)
            return PreparedPrompt({"keys": found.keys, "values": found.values}, prefix_ids)
        # A pass needs a token; where the template has none in common, what it gives is cut away again.
        found = compute_keys_values(self._model, prompt[:0], prefix_ids or (0,))
        keys, values = (part[:, :, : len(prefix_ids)] for part in (found.keys, found.values))
        return PreparedPrompt({"keys": keys, "values": values, "suffix": prompt.to(self._model.dtype)}, prefix_ids)

    def suffix(self, row: Row) -> Tensor | None:
        """The embeddings that stand between the input and the next token, where the prompt stands after the input."""
        if row.suffix is None or not row.output_ids:
            return row.suffix
        output = torch.tensor([list(row.output_ids)], device=self._model.device)
        return torch.cat([row.suffix, self._model.embed(output)[0]])

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self.open_rows(rows)[1]

    def start(self) -> RunningRows:
        return _CachedRows(self)

    @torch.inference_mode()
    def step(self, cache: BatchCache, token_ids: Sequence[int]) -> Tensor:
        return cache.run(self._model, [[token] for token in token_ids])

    @torch.inference_mode()
    def open_rows(self, rows: Sequence[Row]) -> tuple[Callable[[], Sequence[KeysValues]], Tensor]:
        """What can be asked for afterwards: all that is known of each row; and the states their answers begin with."""
        parts = [split(row) for row in rows]
        inputs, suffixes = [ids for _, ids in parts], [self.suffix(row) for row in rows]
        width = max(
            len(ids) + (0 if suffix is None else len(suffix)) for ids, suffix in zip(inputs, suffixes, strict=True)
        )
        cache = aligned([known for known, _ in parts], room=width)
        states = cache.run(self._model, inputs, suffixes)
        return lambda: [cache.slots(row) for row in range(cache.rows)], states


class PackedDecoding(CachedDecoding):
    """As `CachedDecoding`, with inputs packed instead of padded: what a CPU is fastest with."""

    is_padded = False

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self._run(rows, is_kept=False)[1]

    def open_rows(self, rows: Sequence[Row]) -> tuple[Callable[[], Sequence[KeysValues]], Tensor]:
        packed, states = self._run(rows, is_kept=True)
        return packed.whole, states

    def step(self, cache: BatchCache, token_ids: Sequence[int]) -> Tensor:
        return step_packed(self._model, cache, token_ids)

    def _run(self, rows: Sequence[Row], *, is_kept: bool) -> tuple[PackedRows, Tensor]:
        parts = [split(row) for row in rows]
        known, inputs = [known for known, _ in parts], [ids for _, ids in parts]
        return run_packed(self._model, known, inputs, [self.suffix(row) for row in rows], is_kept=is_kept)


class _CachedRows:
    """Rows in one cache. places: which of the cache's rows each is."""

    def __init__(self, decoding: CachedDecoding) -> None:
        self._decoding = decoding
        self._cache: BatchCache | None = None
        self._places: list[int] = []

    def join(self, rows: Sequence[Row]) -> Tensor:
        newcomers, states = self._decoding.open_rows(rows)
        if self._cache is None:
            self._cache = aligned(newcomers(), room=ROOM)
        else:
            self._cache.join(newcomers())
        self._places += range(len(self._places), self._cache.rows)
        return states

    def step(self, token_ids: Sequence[int]) -> Tensor:
        if self._cache is None:
            raise ValueError("no rows to continue; join some first")
        by_place = dict(zip(self._places, token_ids, strict=True))
        states = self._decoding.step(self._cache, [by_place[place] for place in range(self._cache.rows)])
        try:
            return states[self._places]
        except Exception:
            self._cache.retreat(1)
            raise

    def keep(self, rows: Sequence[int]) -> None:
        if self._cache is not None:
            self._places = self._cache.keep([self._places[row] for row in rows])
        if not rows:
            self._cache = None


def split(row: Row) -> tuple[KeysValues, Sequence[int]]:
    """What is known of a row's start, and the tokens left to compute: always at least one, to read the answer from.

    Of a prompt after the input, the tokens before it: what follows is `CachedDecoding.suffix`.
    """
    keys, values, prefix_ids = row.prompt.tensors["keys"], row.prompt.tensors["values"], row.prompt.prefix_ids
    ids = [*row.input_ids, *row.output_ids] if row.suffix is None else row.input_ids
    pairs = zip(prefix_ids, ids[:-1], strict=False)
    shared = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if shared is None:
        shared = min(len(prefix_ids), len(ids) - 1)
    length = int(keys.shape[2]) - len(prefix_ids) + shared
    return KeysValues(keys[:, :, :length], values[:, :, :length]), ids[shared:]
