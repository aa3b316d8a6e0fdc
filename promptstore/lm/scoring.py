"""What the model answers: label scores and target log-probabilities, from logits only where a label is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from promptstore.lm.frozen import FrozenModel, final_decoder_hidden, final_hidden
from promptstore.lm.layout import ModelBatch


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
