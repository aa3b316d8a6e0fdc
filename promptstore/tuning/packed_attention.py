"""Attention over rows that lie end to end, without padding, each behind keys and values that it shares with others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The name under which transformers finds this function.
IMPLEMENTATION = "promptstore_packed_tuning"


@dataclass(slots=True, eq=False)
class Packing:
    """R rows in one sequence of N tokens, T the length of the longest. Travels with the forward pass to every layer.

    slots: [N], row * T + place of each token. positions: [N], of each token in its text. starts: [R], positions before
    each row. groups: [R], whose shared positions those are. prefix_keys, prefix_values: by layer, the shared ones of
    each group, [G, K, C, D]; empty if there are none. kept_keys, kept_values: by layer, [R, K, T, D]; filled by a pass
    over the prefixes themselves, which has no `groups`. ahead: prefixes that stand first in the same sequence; what is
    kept of them is `prefix_keys` and `prefix_values`, filled layer by layer.
    """

    slots: Tensor
    positions: Tensor
    rows: int
    width: int
    starts: Tensor
    groups: Tensor | None
    prefix_keys: Mapping[int, Tensor]
    prefix_values: Mapping[int, Tensor]
    kept_keys: dict[int, Tensor] = field(default_factory=dict)
    kept_values: dict[int, Tensor] = field(default_factory=dict)
    ahead: "Packing | None" = None
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def spread(self, packed: Tensor) -> Tensor:
        """[1, heads, N, D] as [R, heads, T, D]; zeros where a row is shorter than T."""
        heads, tokens, width = packed.shape[1:]
        flat = packed[0].transpose(0, 1).reshape(tokens, heads * width)
        padded = flat.new_zeros(self.rows * self.width, heads * width).index_copy(0, self.slots, flat)
        return padded.view(self.rows, self.width, heads, width).transpose(1, 2)

    def gather(self, padded: Tensor) -> Tensor:
        """[R, heads, T, D] as [1, N, heads, D], the shape that attention functions return."""
        heads, width = padded.shape[1], padded.shape[3]
        flat = padded.transpose(1, 2).reshape(self.rows * self.width, heads * width)
        return flat.index_select(0, self.slots).view(1, -1, heads, width)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, else minus infinity: [R, 1, T, C + T].

        A query sees its own prefix and its row up to itself; with a `window`, at most so many positions back.
        """
        if window not in self._biases:
            seen = self._seen(window)
            self._biases[window] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
                ~seen, -torch.inf
            )
        return self._biases[window]

    def _seen(self, window: int | None) -> Tensor:
        device = self.slots.device
        shared = next((keys.shape[2] for keys in self.prefix_keys.values()), 0)  # C
        within, before = torch.arange(self.width, device=device), torch.arange(shared, device=device)
        starts = self.starts[:, None]
        queries = starts + within
        keys = torch.cat([before.expand(self.rows, -1), queries], dim=1)
        exists = torch.cat([before < starts, torch.ones_like(queries, dtype=torch.bool)], dim=1)
        distance = queries[:, :, None] - keys[:, None, :]
        seen = exists[:, None, :] & (distance >= 0)
        return (seen if window is None else seen & (distance < window))[:, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. query: [1, heads, N, D]; key, value: [1, K, N, D], positions applied."""
    if attention_mask is not None or s_aux is not None:
        raise ValueError("an attention mask or sinks of the model's own: this architecture must be padded")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts, begin = [], 0
    for part in ([] if packing.ahead is None else [packing.ahead]) + [packing]:
        end = begin + len(part.slots)
        queries, keys, values = (each[:, :, begin:end] for each in (query, key, value))
        parts.append(_attend(part, module.layer_idx, queries, keys, values, scale, sliding_window, softcap))
        begin = end
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], None


def _attend(
    packing: Packing,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[1, N, heads, D] of the packing's own tokens."""
    queries, keys, values = packing.spread(query), packing.spread(key), packing.spread(value)
    if packing.groups is None:
        packing.kept_keys[layer], packing.kept_values[layer] = keys, values
    elif packing.prefix_keys:
        keys = _behind(packing.prefix_keys[layer], packing.groups, keys)
        values = _behind(packing.prefix_values[layer], packing.groups, values)
    return packing.gather(mix(queries, keys, values, packing.bias(window, query.dtype), scale, softcap))


def mix(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Attention [R, heads, T, D] with a bias [R, 1, T, S] for every pair, by what is fastest on the device."""
    if queries.device.type == "cpu" or softcap is not None:
        return _by_products(queries, keys, values, bias, scale, softcap)
    return _fused(queries, keys, values, bias, scale)


def _behind(shared: Tensor, groups: Tensor, own: Tensor) -> Tensor:
    """Each row's own keys or values behind those of its group, [R, K, C + T, D]. Gradients add up in float32."""
    source = shared.float() if shared.requires_grad else shared
    return torch.cat([source.index_select(0, groups).to(own.dtype), own], dim=2)


def _by_products(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Plain matrix products. On CPU in bf16 the fused kernel's backward pass alone takes a quarter of a step."""
    rows, heads, width, _ = queries.shape
    shared = keys.shape[1]
    grouped = (queries * scale).reshape(rows * shared, heads // shared * width, -1)
    scores = torch.bmm(grouped, keys.reshape(rows * shared, keys.shape[2], -1).transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(rows, heads, width, -1) + bias
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    mixed = torch.bmm(
        shares.view(rows * shared, heads // shared * width, -1),
        values.reshape(rows * shared, values.shape[2], -1),
    )
    return mixed.view(rows, heads, width, -1)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    copies = queries.shape[1] // keys.shape[1]
    mixed: Tensor = torch.nn.functional.scaled_dot_product_attention(
        queries,
        keys.repeat_interleave(copies, dim=1),
        values.repeat_interleave(copies, dim=1),
        attn_mask=bias,
        scale=scale,
    )
    return mixed
