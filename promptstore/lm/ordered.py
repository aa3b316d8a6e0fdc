"""A model that only answers, with its weights in the order that they are multiplied in."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel, check_head
from promptstore.lm.onednn import has_bf16, in_order, product

logger = logging.getLogger(__name__)


def order_weights(model: FrozenModel) -> FrozenModel:
    """The same model for answering alone, where that is faster: in bfloat16, on a CPU that computes it.

    It takes the network over: no prompt can be trained through it any more. Answers are what they were up to rounding.
    Weights that were pages of the model's file become memory of this process; the head is held in both orders. A
    network that reads weights past its linear layers stays as it is.
    """
    is_quantised = getattr(model.network, "hf_quantizer", None) is not None
    if is_quantised or model.device.type != "cpu" or model.dtype != torch.bfloat16 or not has_bf16():
        return model
    head = model.network.get_output_embeddings()
    _replace(model.network, nn.Linear, lambda layer: layer if layer is head else OrderedLinear(layer))
    found = replace(model, head=replace(model.head, ordered=in_order(model.head.weight)))
    try:
        check_head(found)
    except (InvalidInputError, RuntimeError, TypeError, AttributeError) as error:
        logger.info("the weights of %s stay in torch's order: %s", model.fingerprint.architecture, error)
        _replace(model.network, OrderedLinear, OrderedLinear.plain)
        return model
    return found


class OrderedLinear(nn.Module):
    """What an `nn.Linear` computes. weight: [out, in] to whoever asks for its shape or dtype, else opaque."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", in_order(layer.weight))
        self.bias = layer.bias
        self.eval()

    def forward(self, hidden: Tensor) -> Tensor:
        return product(hidden, self.weight, self.bias)

    def plain(self) -> nn.Linear:
        """The layer that this one was made of."""
        outputs, inputs = self.weight.shape
        layer = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        layer.bias = self.bias
        return layer.eval()


def _replace(network: Any, kind: type[nn.Module], made_of: Callable[[Any], nn.Module]) -> None:
    """Puts another layer in the place of each one of exactly this kind; one at a time is held twice."""
    made: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
    for parent in [each for each in network.modules() if type(each) is not kind]:
        for name in [name for name, child in parent.named_children() if type(child) is kind]:
            layer = getattr(parent, name)
            made[layer] = made.get(layer) or made_of(layer)
            setattr(parent, name, made[layer])
