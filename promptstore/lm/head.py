"""From final hidden states to logits, computed where a label is and nowhere else."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm.onednn import product


@dataclass(frozen=True, slots=True, eq=False)
class OutputHead:
    """A language model's output projection: softcap(scale · (W h + b)).

    weight: [V, H] in the model's dtype. bias: [V]. softcap: as in Gemma 2, `cap · tanh(x / cap)`.
    ordered: the weights once more, as `promptstore.lm.onednn` multiplies them; `None` where that is not faster.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    ordered: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the whole vocabulary. hidden: [N, H]. Returns float32 [N, V].

        The hidden states are made contiguous first: a bf16 product with a strided operand is a hundred times
        slower on CPU (measured: 862 ms against 8.5 ms for V = 49,152).
        """
        hidden = hidden.contiguous()
        if self.ordered is not None:
            return self._finish(product(hidden, self.ordered, self.bias).float())
        return self._finish(torch.nn.functional.linear(hidden, self.weight, self.bias).float())

    def logits_of(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Logits of a few tokens, in float32 throughout. hidden: [N, H]; token_ids: [K]. Returns float32 [N, K].

        bf16 has a resolution of 1/16 at a logit of 16, which is coarse beside the differences between labels.
        """
        weight = self.weight[token_ids].float()
        bias = None if self.bias is None else self.bias[token_ids].float()
        return self._finish(torch.nn.functional.linear(hidden.float(), weight, bias))

    def _finish(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def read_head(network: Any) -> OutputHead:
    """The output head of a causal or encoder-decoder language model.

    Raises:
        InvalidInputError: the network has no language-model head.
    """
    projection = network.get_output_embeddings()
    if projection is None or not isinstance(getattr(projection, "weight", None), Tensor):
        raise InvalidInputError(
            f"{type(network).__name__} has no language-model head, so it cannot say a label; "
            "use a causal or an encoder-decoder language model"
        )
    bias = getattr(projection, "bias", None)
    if bias is None and (final_bias := getattr(network, "final_logits_bias", None)) is not None:
        bias = final_bias[0].to(projection.weight.dtype)
    config = network.config
    return OutputHead(projection.weight, bias, _scale(config), getattr(config, "final_logit_softcapping", None))


def _scale(config: Any) -> float:
    """The factor between W h and the logits, by the names that transformers' configurations give it."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    if config.is_encoder_decoder and getattr(config, "scale_decoder_outputs", False):
        scale *= config.d_model**-0.5
    return scale
