"""What a decoder-only model remembers of a prompt, computed once per version instead of once per request.

A causal model's keys and values for leading positions do not depend on what follows. A batch's cache is put together
from rows of different prompts and lengths as `[pad][prompt][tokens]`, without a gap inside a row, because sliding
windows count cache slots, not positions. Every layer keeps its whole history, sliding ones too: the mask cuts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel

ROOM = 64


@dataclass(frozen=True, slots=True, eq=False)
class KeysValues:
    """Keys and values of C leading positions. keys: [L, K, C, D], values: [L, K, C, D'], L layers of K heads."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        """C: virtual tokens, and template tokens that every input of the task starts with."""
        return int(self.keys.shape[2])


@torch.inference_mode()
def compute_keys_values(model: FrozenModel, prompt: Tensor, prefix_ids: Sequence[int] = ()) -> KeysValues:
    """The keys and values of a prompt and of the tokens that always follow it. One forward pass over both.

    prompt: [P, H] of any float dtype, on the model's device.

    Raises:
        InvalidInputError: the architecture keeps something else than one key and value per position, head and layer.
    """
    embedded = prompt.to(model.dtype)[None]
    if prefix_ids:
        embedded = torch.cat([embedded, model.embed(torch.tensor([list(prefix_ids)], device=model.device))], dim=1)
    length = int(embedded.shape[1])
    cache = DynamicCache()
    model.run(
        inputs_embeds=embedded,
        attention_mask=torch.ones((1, length), dtype=torch.long, device=model.device),
        past_key_values=cache,
        use_cache=True,
        **_positions(model, torch.arange(length)[None]),
    )
    return KeysValues(_stacked(cache, "keys", length), _stacked(cache, "values", length))


class BatchCache:
    """Keys and values of R rows, each in consecutive slots, in buffers with room to grow: [L, R or more, K, slots, D].

    Row r fills the slots `starts[r]` to `stops[r]`; a forward pass appends at `end`, so rows that are to be continued
    must stop there: `aligned` makes a cache where they do.
    """

    def __init__(self, keys: Tensor, values: Tensor, starts: list[int], stops: list[int]) -> None:
        self.keys = keys
        self.values = values
        self.starts = starts
        self.stops = stops
        self.end = max(stops)

    @property
    def rows(self) -> int:
        return len(self.starts)

    def run(
        self, model: FrozenModel, inputs: Sequence[Sequence[int]], suffixes: Sequence[Tensor | None] = ()
    ) -> Tensor:
        """Appends each row's tokens and returns the hidden state after its last one, contiguous [R, H].

        Shorter inputs are padded on the right; the padding's slots are left behind the rows' stops. suffixes: per row
        embeddings [P, H] that follow its tokens; none if not given.
        """
        if any(stop != self.end for stop in self.stops):
            raise ValueError("only rows that stop at the end of the cache can be continued; align them first")
        suffixes = suffixes or [None] * self.rows
        lengths = [
            len(ids) + (0 if suffix is None else len(suffix)) for ids, suffix in zip(inputs, suffixes, strict=True)
        ]
        width = max(lengths)
        self.make_room(width)
        left = min(self.starts)
        ids = torch.full((self.rows, width), model.pad_token_id, dtype=torch.long)
        mask = torch.zeros((self.rows, self.end + width - left), dtype=torch.long)
        for row, (start, tokens) in enumerate(zip(self.starts, inputs, strict=True)):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, start - left : self.end - left + lengths[row]] = 1
        positions = _row_positions([self.end - start for start in self.starts], lengths)
        outputs = model.run(
            **_with_suffixes(model, ids.to(model.device), inputs, suffixes),
            attention_mask=mask.to(model.device),
            past_key_values=self._as_transformers(left),
            use_cache=True,
            **_positions(model, positions),
        )
        last = torch.tensor(lengths, device=model.device) - 1
        hidden: Tensor = outputs.last_hidden_state
        found = hidden[torch.arange(self.rows, device=model.device), last].contiguous()
        self.stops = [self.end + length for length in lengths]
        self.end += width
        return found

    @torch.inference_mode()
    def join(self, newcomers: Sequence[KeysValues]) -> None:
        """Adds copies of `newcomers` behind the other rows; those stay where they are, if there is room."""
        if self.rows + len(newcomers) > self.keys.shape[1] or any(row.length > self.end for row in newcomers):
            self._copy([*map(self.slots, range(self.rows)), *newcomers], room=ROOM)
            return
        places = range(self.rows, self.rows + len(newcomers))
        _right_align(self.keys, places, [row.keys for row in newcomers], self.end)
        _right_align(self.values, places, [row.values for row in newcomers], self.end)
        self.starts += [self.end - row.length for row in newcomers]
        self.stops += [self.end] * len(newcomers)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drops every row but these and returns where each is now: rows from the end move to places that came free."""
        count = len(rows)
        free = sorted(set(range(count)).difference(rows))
        moves = dict(zip((row for row in rows if row >= count), free, strict=True))
        for row, place in moves.items():
            start, stop = self.starts[row], self.stops[row]
            self.keys[:, place, :, start:stop] = self.keys[:, row, :, start:stop]
            self.values[:, place, :, start:stop] = self.values[:, row, :, start:stop]
            self.starts[place], self.stops[place] = start, stop
        self.starts, self.stops = self.starts[:count], self.stops[:count]
        return [moves.get(row, row) for row in rows]

    def make_room(self, count: int) -> None:
        """So many free slots behind every row."""
        if self.end + count > self.keys.shape[3]:
            self._copy([self.slots(row) for row in range(self.rows)], room=count + ROOM)

    def layer(self, layer: int, *, room: int) -> tuple[Tensor, Tensor]:
        """Views of one layer's keys and values, [R, K, slots, D], with `room` free slots behind the rows."""
        used = slice(min(self.starts), self.end + room)
        return self.keys[layer, : self.rows, :, used], self.values[layer, : self.rows, :, used]

    def advance(self, count: int) -> None:
        """Every row has so many slots more, which have been written."""
        self.stops = [stop + count for stop in self.stops]
        self.end += count

    def retreat(self, count: int) -> None:
        """Every row forgets its last slots, so many of them."""
        self.advance(-count)

    def slots(self, row: int) -> KeysValues:
        """A view of what one row holds."""
        start, stop = self.starts[row], self.stops[row]
        return KeysValues(self.keys[:, row, :, start:stop], self.values[:, row, :, start:stop])

    def _copy(self, rows: Sequence[KeysValues], *, room: int) -> None:
        """Buffers anew, of which no more than half are free places."""
        grown = aligned(rows, room=room, places=min(self.keys.shape[1], 2 * len(rows)))
        self.keys, self.values = grown.keys, grown.values
        self.starts, self.stops, self.end = grown.starts, grown.stops, grown.end

    def _as_transformers(self, left: int) -> Cache:
        """The slots from `left` to `end` as transformers wants them: one layer object per layer, updated in place."""
        pairs = zip(self.keys[:, : self.rows], self.values[:, : self.rows], strict=True)
        return Cache(layers=[_RoomyLayer(keys, values, left, self.end) for keys, values in pairs])


def aligned(rows: Sequence[KeysValues], *, room: int, places: int = 0) -> BatchCache:
    """A cache of copies of `rows`, padded on the left so that all stop at its end, with `room` free slots behind.

    places: for how many rows it has buffers, if more than there are.
    """
    end = max(row.length for row in rows)
    places = max(places, len(rows))
    keys, values = (_buffer(part, places, end + room) for part in (rows[0].keys, rows[0].values))
    _right_align(keys, range(len(rows)), [row.keys for row in rows], end)
    _right_align(values, range(len(rows)), [row.values for row in rows], end)
    return BatchCache(keys, values, [end - row.length for row in rows], [end] * len(rows))


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's view of a `BatchCache`: writes into its buffers where transformers' own layer copies them whole."""

    def __init__(self, keys: Tensor, values: Tensor, left: int, end: int) -> None:
        super().__init__()
        self._key_buffer = keys
        self._value_buffer = values
        self._left = left
        self._end = end
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._expose()

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        start = self._end
        self._end += int(key_states.shape[-2])
        self._key_buffer[:, :, start : self._end] = key_states
        self._value_buffer[:, :, start : self._end] = value_states
        return self._expose()

    def _expose(self) -> tuple[Tensor, Tensor]:
        self.keys = self._key_buffer[:, :, self._left : self._end]
        self.values = self._value_buffer[:, :, self._left : self._end]
        return self.keys, self.values


def _with_suffixes(
    model: FrozenModel, ids: Tensor, inputs: Sequence[Sequence[int]], suffixes: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """What the network reads: token ids, or, where a row ends in a prompt, embeddings."""
    if all(suffix is None for suffix in suffixes):
        return {"input_ids": ids}
    embedded = model.embed(ids)
    for row, (tokens, suffix) in enumerate(zip(inputs, suffixes, strict=True)):
        if suffix is not None:
            embedded[row, len(tokens) : len(tokens) + len(suffix)] = suffix
    return {"inputs_embeds": embedded}


def _row_positions(before: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Positions of padded tokens, [R, width]; padding repeats its row's last one, so that none is past the model's."""
    counted = torch.arange(max(lengths))[None].expand(len(lengths), -1)
    within = torch.minimum(counted, torch.tensor(lengths)[:, None] - 1)
    return within + torch.tensor(before)[:, None]


def _positions(model: FrozenModel, positions: Tensor) -> dict[str, Tensor]:
    return {"position_ids": positions.to(model.device)} if model.takes_positions else {}


def _stacked(cache: Cache, part: str, length: int) -> Tensor:
    """One part of every layer as [L, K, C, D]; the batch of one is gone."""
    tensors = [getattr(layer, part, None) for layer in cache.layers]
    shapes = {None if tensor is None else tuple(tensor.shape) for tensor in tensors}
    plain = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim == 4]
    are_plain = len(plain) == len(tensors) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if not tensors or not are_plain or len(shapes) != 1 or plain[0].shape[2] != length:
        raise InvalidInputError(f"this architecture's cache is not one key and value per position: {part} {shapes}")
    return torch.stack([tensor[0] for tensor in plain])


def _buffer(part: Tensor, places: int, slots: int) -> Tensor:
    """For so many rows of parts like this one, [L, K, C, D]: [L, places, K, slots, D]."""
    layers, heads, _, width = part.shape
    return part.new_empty((layers, places, heads, slots, width))


def _right_align(buffer: Tensor, places: Sequence[int], parts: Sequence[Tensor], end: int) -> None:
    """Copies parts [L, K, C_r, D] into a buffer so that all stop at slot `end`."""
    for place, part in zip(places, parts, strict=True):
        start = end - part.shape[2]
        # Zeros, because a masked slot still takes part as 0 * value, and 0 * NaN is NaN.
        buffer[:, place, :, :start] = 0
        buffer[:, place, :, start:end] = part
