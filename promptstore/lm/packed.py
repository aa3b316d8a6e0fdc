"""Rows of different lengths end to end in one sequence, so that no padding is computed at all.

On a CPU nearly all of a forward pass is matrix products over tokens, and padding costs as much as text. Here the
products see one row of all tokens; only attention goes row by row, each over its own prompt's keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.keys_values import KeysValues
from promptstore.lm.last_layer import feed_forward_at

ATTENTION = "promptstore_packed"


@dataclass(slots=True, eq=False)
class PackedRows:
    """Rows of one forward pass. edges: where each begins and ends among the new tokens.

    written: per layer, keys [K, N, D] and values [K, N, D'] of the new tokens.
    """

    known: Sequence[KeysValues]
    edges: Sequence[tuple[int, int]]
    written: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def whole(self) -> list[KeysValues]:
        """Copies of all that is known of each row now, its new tokens included."""
        keys = torch.stack([key for key, _ in self.written])
        values = torch.stack([value for _, value in self.written])
        return [
            KeysValues(
                torch.cat([row.keys, keys[:, :, start:stop]], dim=2),
                torch.cat([row.values, values[:, :, start:stop]], dim=2),
            )
            for row, (start, stop) in zip(self.known, self.edges, strict=True)
        ]

    def mask(self, known: int, new: int, window: int | None, like: Tensor) -> Tensor:
        """What each of `new` tokens sees of the `known` before it and of themselves: 0 or minus infinity."""
        key = (known, new, window)
        if key not in self._masks:
            distance = torch.arange(known, known + new)[:, None] - torch.arange(known + new)[None]
            is_hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            self._masks[key] = torch.zeros(new, known + new).masked_fill(is_hidden, float("-inf")).to(like)
        return self._masks[key]


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
) -> tuple[PackedRows, Tensor]:
    """Runs each row's tokens behind what is known of its start; for a model with packing enabled.

    suffixes: per row embeddings [P, H] that follow its tokens; none if not given. Returns the rows and the hidden state
    after each one's last token, contiguous [R, H].
    """
    suffixes = suffixes or [None] * len(inputs)
    lengths = [len(ids) + (0 if each is None else len(each)) for ids, each in zip(inputs, suffixes, strict=True)]
    edges = list(pairwise(accumulate(lengths, initial=0)))
    packed = PackedRows(known, edges)
    positions = [torch.arange(row.length, row.length + length) for row, length in zip(known, lengths, strict=True)]
    extra = {"position_ids": torch.cat(positions)[None].to(model.device)} if model.takes_positions else {}
    last = torch.tensor([stop - 1 for _, stop in edges], device=model.device)
    with feed_forward_at(model.network, last):
        outputs = model.run(
            **_read(model, inputs, suffixes),
            # Four dimensions: taken as it is, so that no mask is made; attention makes its own.
            attention_mask=torch.zeros((1, 1, 1, 1), device=model.device, dtype=model.dtype),
            use_cache=False,
            packed=packed,
            **extra,
        )
    return packed, outputs.last_hidden_state[0, last].contiguous()


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
    *,
    packed: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Torch's attention; over packed rows where there are any. query: [1, heads, N, D]; key, value: [1, K, N, D]."""
    if packed is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    if options.get("position_bias") is not None or options.get("softcap") is not None:
        raise InvalidInputError(f"{type(module).__name__} adds a bias or a cap to its attention")
    layer = len(packed.written)
    packed.written.append((key[0], value[0]))
    output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
    for row, (start, stop) in zip(packed.known, packed.edges, strict=True):
        keys = torch.cat([row.keys[layer], key[0, :, start:stop]], dim=1)[None]
        values = torch.cat([row.values[layer], value[0, :, start:stop]], dim=1)[None]
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:stop],
            keys,
            values,
            attn_mask=packed.mask(row.length, stop - start, options.get("sliding_window"), query),
            scale=options.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        output[:, start:stop] = found.transpose(1, 2)
    return output, None
