"""What the model answers: label scores and target log-probabilities, from logits only where a label is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel, final_decoder_hidden, final_hidden
from promptstore.lm.layout import ModelBatch, lay_out


def answer_hidden(model: FrozenModel, batch: ModelBatch) -> Tensor:
    """The hidden state that the first answer token is read from. Returns contiguous [B, H]."""
    if model.is_encoder_decoder:
        start = torch.full((len(batch.inputs_embeds), 1), model.decoder_start_token_id, device=model.device)
        hidden = final_decoder_hidden(
            model, inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, decoder_ids=start
        )
    else:
        hidden = final_hidden(
            model,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        )
    return hidden[:, -1].contiguous()


def label_logits(model: FrozenModel, batch: ModelBatch, label_token_ids: Sequence[int]) -> Tensor:
    """Logits of the label tokens of one task. Returns float32 [B, K], with gradient to the batch's prompts."""
    return logits_of_labels(model, answer_hidden(model, batch), label_token_ids)


def logits_of_labels(model: FrozenModel, hidden: Tensor, label_token_ids: Sequence[int]) -> Tensor:
    """As `label_logits`, from answer states that were computed for a batch of several tasks. hidden: [N, H]."""
    ids = torch.tensor(label_token_ids, device=model.head.weight.device)
    return model.head.logits_of(hidden.to(model.head.weight.device), ids)


def label_log_probabilities(model: FrozenModel, batch: ModelBatch, label_token_ids: Sequence[int]) -> Tensor:
    """Log-softmax over the label tokens alone. Returns float32 [B, K]."""
    return torch.log_softmax(label_logits(model, batch, label_token_ids), dim=-1)


def target_log_probabilities(
    model: FrozenModel,
    prompts: Sequence[Tensor | None],
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> Tensor:
    """Log-probability of every target token given its input and the target tokens before it (teacher forcing).

    prompts, inputs: as `lay_out` takes them. targets: per row at least one token id.
    Returns float32 [N], row after row, N the number of target tokens; with gradient to the prompts.
    """
    if model.is_encoder_decoder:
        hidden = _decoder_target_hidden(model, lay_out(model, prompts, inputs), targets)
    else:
        joined = [[*ids, *target[:-1]] for ids, target in zip(inputs, targets, strict=True)]
        batch = lay_out(model, prompts, joined)
        states = final_hidden(
            model,
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        )
        hidden = torch.cat([states[row, -len(target) :] for row, target in enumerate(targets)])
    ids = torch.tensor([index for target in targets for index in target], device=model.head.weight.device)
    logits = model.head.logits(hidden.to(model.head.weight.device))
    return torch.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]


def _decoder_target_hidden(model: FrozenModel, batch: ModelBatch, targets: Sequence[Sequence[int]]) -> Tensor:
    start = model.decoder_start_token_id
    width = max(len(target) for target in targets)
    rows = [[start, *target[:-1]] + [start] * (width - len(target)) for target in targets]
    hidden = final_decoder_hidden(
        model,
        inputs_embeds=batch.inputs_embeds,
        attention_mask=batch.attention_mask,
        decoder_ids=torch.tensor(rows, device=model.device),
    )
    return torch.cat([hidden[row, : len(target)] for row, target in enumerate(targets)])
