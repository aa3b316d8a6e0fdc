"""The one place where prompts [P, H] meet input tokens [T, H].

Decoder-only: `[pad][head][prompt][tokens]`, so that the last position of every row is where the answer is, with
positions counted from the mask; there is a head where the prompt stands after the input (ADR 0033). Padding between
prompt and tokens, or positions counted over it, would move the logits.
Encoder-decoder: `[prompt][tokens][pad]` at the encoder's input, because some encoders count positions from the left
edge and take no `position_ids`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel


@dataclass(frozen=True, slots=True, eq=False)
class ModelBatch:
    """B laid-out inputs, S positions each, on the model's device.

    inputs_embeds: [B, S, H] in the model's dtype; carries the gradient to the prompts.
    attention_mask: integer [B, S], 1 where a prompt or token is. position_ids: [B, S], or `None` for encoder-decoders.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None


def lay_out(
    model: FrozenModel,
    prompts: Sequence[Tensor | None],
    inputs: Sequence[Sequence[int]],
    heads: Sequence[Sequence[int]] | None = None,
) -> ModelBatch:
    """One batch of inputs, each behind its own prompt.

    prompts: per row [P_i, H] of any float dtype on the model's device, or `None` for the bare model; lengths may
    differ. inputs: per row the token ids behind the prompt. heads: per row those before it; none if not given. A row
    has at least one token.

    Raises:
        InvalidInputError: no rows, a row without tokens, a prompt of another width, a row longer than the model.
    """
    lengths = [_num_virtual_tokens(prompt, model.hidden_size) for prompt in prompts]
    heads = [()] * len(inputs) if heads is None else heads
    tokens = [len(head) + len(ids) for head, ids in zip(heads, inputs, strict=True)]
    _check(model, lengths, tokens)
    width = max(length + count for length, count in zip(lengths, tokens, strict=True))
    ids_of_rows = torch.full((len(inputs), width), model.pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(inputs), width), dtype=torch.long)
    places = []
    for row, (head, length, ids) in enumerate(zip(heads, lengths, inputs, strict=True)):
        total = len(head) + length + len(ids)
        start = 0 if model.is_encoder_decoder else width - total
        places.append(start + len(head))
        ids_of_rows[row, start : places[row]] = torch.tensor(head, dtype=torch.long)
        ids_of_rows[row, places[row] + length : start + total] = torch.tensor(ids, dtype=torch.long)
        mask[row, start : start + total] = 1

    embedded = _insert(model.embed(ids_of_rows.to(model.device)), prompts, places)
    mask = mask.to(model.device)
    positions = None if model.is_encoder_decoder else (mask.cumsum(dim=1) - 1).clamp(min=0)
    return ModelBatch(embedded, mask, positions)


def _insert(embedded: Tensor, prompts: Sequence[Tensor | None], starts: Sequence[int]) -> Tensor:
    """`embedded` with each row's prompt written at its place. One scatter, so the backward pass is one gather."""
    present = [
        (row, start, prompt)
        for row, (start, prompt) in enumerate(zip(starts, prompts, strict=True))
        if prompt is not None
    ]
    if not present:
        return embedded
    rows = torch.cat([torch.full((len(prompt),), row) for row, _, prompt in present])
    columns = torch.cat([torch.arange(start, start + len(prompt)) for _, start, prompt in present])
    values = torch.cat([prompt.to(embedded.dtype) for _, _, prompt in present])
    return embedded.index_put((rows.to(embedded.device), columns.to(embedded.device)), values)


def _num_virtual_tokens(prompt: Tensor | None, hidden_size: int) -> int:
    if prompt is None:
        return 0
    if prompt.ndim != 2 or prompt.shape[1] != hidden_size:
        raise InvalidInputError(
            f"prompt has shape {list(prompt.shape)}, expected [P, {hidden_size}] for this base model"
        )
    return int(prompt.shape[0])


def _check(model: FrozenModel, lengths: Sequence[int], tokens: Sequence[int]) -> None:
    if not tokens or len(lengths) != len(tokens):
        raise InvalidInputError(f"a batch needs one prompt per input: {len(lengths)} prompts, {len(tokens)} inputs")
    for row, (length, count) in enumerate(zip(lengths, tokens, strict=True)):
        if count == 0:
            raise InvalidInputError(f"input {row} of the batch has no tokens")
        if model.max_length is not None and length + count > model.max_length:
            raise InvalidInputError(
                f"input {row} of the batch has {length} virtual tokens and {count} tokens, the model has "
                f"{model.max_length} positions; lower the task's max_input_tokens"
            )
