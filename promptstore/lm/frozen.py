"""The model nobody trains."""

import copy
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.errors import InvalidInputError
from promptstore.lm.attention import attention_of_any_shape
from promptstore.lm.head import OutputHead, read_head
from promptstore.lm.row_attention import RowAttention

# Published and own logits may differ by rounding in the model's dtype, never by a factor or a missing term.
HEAD_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class FrozenModel:
    """A language model in eval mode whose weights take no gradient, its tokenizer and its identity.

    network: a transformers causal or encoder-decoder language model; nobody else changes its mode or weights.
    takes_positions: the decoder-only network has a `position_ids` argument (ALiBi models read the mask instead).
    compiled: a packed pass as `promptstore.lm.compiled` makes it: of the network below its head, embeddings [1, N, H]
    and positions [1, N] to hidden states [1, N, H]. row_attention: what packed rows attend with, torch's if `None`.
    """

    network: Any
    tokenizer: Any
    fingerprint: BaseModelFingerprint
    head: OutputHead
    takes_positions: bool
    compiled: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    row_attention: RowAttention | None = None

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.network.config.is_encoder_decoder)

    @property
    def hidden_size(self) -> int:
        """H: the width of the input embeddings."""
        return self.fingerprint.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """V: rows of the input embedding table, which may be more than the tokenizer knows."""
        return int(self.embeddings.shape[0])

    @property
    def max_length(self) -> int | None:
        """Positions the model has, virtual tokens included; `None` when its positions are relative and unbounded."""
        length = getattr(self.network.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def device(self) -> torch.device:
        """Where inputs go; of a model spread over several devices, the one of the input embeddings."""
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.dtype

    @property
    def embeddings(self) -> Tensor:
        """The input embedding table, [V, H]."""
        weight: Tensor = self.network.get_input_embeddings().weight
        return weight

    @property
    def pad_token_id(self) -> int:
        """An id to fill batches with; positions that hold it are masked, so 0 serves a vocabulary without one."""
        found = self.tokenizer.pad_token_id
        return 0 if found is None else int(found)

    @property
    def decoder_start_token_id(self) -> int:
        """The id an encoder-decoder model starts its output with."""
        config = self.network.config
        for value in (config.decoder_start_token_id, config.bos_token_id, config.pad_token_id):
            if value is not None:
                return int(value)
        return self.pad_token_id

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings as the network's own input layer gives them, Gemma's scaling included.

        ids: integer [B, T] on the model's device. Returns [B, T, H] in the model's dtype, without gradient.
        """
        with torch.no_grad():
            embedded: Tensor = self.network.get_input_embeddings()(ids)
        return embedded

    def run(self, **inputs: Any) -> Any:
        """What the network says below its head, in transformers' form; inputs are those of the architecture."""
        with attention_of_any_shape(self.device):
            return self.network.base_model(**inputs, return_dict=True)

    def twin(self) -> "FrozenModel":
        """The same weights in a network of its own, so that two threads can compute at a time.

        What a pass switches about a network, its attention say, is the object's.
        """
        weights = chain(self.network.parameters(), self.network.buffers())
        network = copy.deepcopy(self.network, {id(each): each for each in weights})
        return replace(self, network=network)

    def weights_digest_now(self) -> str:
        """SHA-256 over every byte of the live parameters and buffers: if a fit changes it, the base moved."""
        digest = hashlib.sha256()
        named = [*self.network.named_parameters(), *self.network.named_buffers()]
        for name, tensor in sorted(named, key=lambda pair: pair[0]):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
        return digest.hexdigest()


def freeze(network: Any, tokenizer: Any, fingerprint: BaseModelFingerprint) -> FrozenModel:
    """Takes ownership of `network`: eval mode, no gradient for any weight, its logits checked against ours.

    Raises:
        InvalidInputError: no language-model head, or one that computes its logits in a way this version does not know.
    """
    network.eval()
    network.requires_grad_(False)  # noqa: FBT003 - torch's signature
    model = FrozenModel(network, tokenizer, fingerprint, read_head(network), _takes_positions(network))
    check_head(model)
    return model


def final_hidden(
    model: FrozenModel, *, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor | None
) -> Tensor:
    """Last hidden states [B, S, H] of a decoder-only network, after its final norm. inputs_embeds: [B, S, H]."""
    extra = {"position_ids": position_ids} if model.takes_positions and position_ids is not None else {}
    outputs = model.run(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False, **extra)
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def final_decoder_hidden(
    model: FrozenModel, *, inputs_embeds: Tensor, attention_mask: Tensor, decoder_ids: Tensor
) -> Tensor:
    """Last hidden states [B, D, H] of an encoder-decoder. inputs_embeds: [B, S, H]; decoder_ids: [B, D].

    Padding of `decoder_ids` on the right needs no mask: the decoder is causal.
    """
    with attention_of_any_shape(model.device):
        encoded = model.network.get_encoder()(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state
        outputs = model.network.get_decoder()(
            input_ids=decoder_ids,
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention_mask,
            use_cache=False,
            return_dict=True,
        )
    hidden: Tensor = outputs.last_hidden_state
    return hidden


def _takes_positions(network: Any) -> bool:
    return "position_ids" in inspect.signature(network.base_model.forward).parameters


@torch.no_grad()
def check_head(model: FrozenModel) -> None:
    """Compares our logits with the network's own on two tokens: a scale or cap that we miss would be silently wrong."""
    ids = torch.tensor([[1, 2]], device=model.device)
    mask = torch.ones_like(ids)
    if model.is_encoder_decoder:
        start = torch.full((1, 1), model.decoder_start_token_id, device=model.device)
        published = model.network(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
        hidden = final_decoder_hidden(model, inputs_embeds=model.embed(ids), attention_mask=mask, decoder_ids=start)
    else:
        published = model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        hidden = final_hidden(model, inputs_embeds=model.embed(ids), attention_mask=mask, position_ids=None)
    theirs = published[0, -1].float()
    ours = model.head.logits(hidden[:, -1].to(model.head.weight.device))[0].to(theirs.device)
    difference = float((ours - theirs).abs().max())
    if not difference <= HEAD_TOLERANCE * float(theirs.abs().max()) + 1e-4:
        raise InvalidInputError(
            f"{type(model.network).__name__} computes its logits in a way that promptstore does not know "
            f"(they differ by {difference:.3g}); please report the architecture"
        )
