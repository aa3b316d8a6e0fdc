"""Weights in oneDNN's order give the same answers, are held once, and can be had back."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.head import read_head
from promptstore.lm.onednn import has_bf16
from promptstore.lm.ordered import OrderedLinear, order_weights
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5

pytestmark = pytest.mark.skipif(not has_bf16(), reason="this processor computes no bfloat16")


def in_bf16(model: FrozenModel) -> FrozenModel:
    network = model.network.to(torch.bfloat16)
    return replace(model, network=network, head=read_head(network))


def logits(model: FrozenModel) -> Tensor:
    """Of four tokens, by the network and by our head."""
    ids = torch.tensor([[5, 80, 300, 7]])
    more = {"decoder_input_ids": ids} if model.is_encoder_decoder else {}
    with torch.inference_mode():
        outputs = model.network(input_ids=ids, **more, output_hidden_states=True)
        hidden = (outputs.decoder_hidden_states if model.is_encoder_decoder else outputs.hidden_states)[-1]
        return torch.stack([outputs.logits[0].float(), model.head.logits(hidden[0])])


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5])
def test_answers_are_the_same_up_to_rounding(make: Callable[[], FrozenModel]) -> None:
    before = logits(in_bf16(make()))

    ordered = order_weights(in_bf16(make()))

    assert ordered.head.ordered is not None
    after = logits(ordered)
    assert ((after - before).norm(dim=2) <= 0.03 * before.norm(dim=2)).all()


def test_every_layer_but_the_head_is_held_in_that_order_alone() -> None:
    model = in_bf16(tiny_llama())
    head = model.network.get_output_embeddings()
    left = weakref.ref(model.network.model.layers[0].mlp.gate_proj.weight)

    ordered = order_weights(model)

    assert [each for each in ordered.network.modules() if type(each) is nn.Linear] == [head]
    assert sum(isinstance(each, OrderedLinear) for each in ordered.network.modules()) == 2 * 7
    assert left() is None


def test_a_twin_computes_with_the_same_weights() -> None:
    model = order_weights(in_bf16(tiny_llama()))

    twin = model.twin()

    pairs = zip(model.network.modules(), twin.network.modules(), strict=True)
    layers = [(ours, theirs) for ours, theirs in pairs if isinstance(ours, OrderedLinear)]
    assert layers
    assert all(ours is not theirs and ours.weight is theirs.weight for ours, theirs in layers)
    assert torch.equal(logits(twin), logits(model))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3, 40), (0,)])
def test_a_layer_keeps_its_bias_and_gives_its_weights_back(bias: bool, rows: tuple[int, ...]) -> None:
    plain = nn.Linear(24, 40, bias=bias, dtype=torch.bfloat16)
    values = torch.randn(*rows, 24, dtype=torch.bfloat16)

    ordered = OrderedLinear(plain)

    with torch.inference_mode():
        torch.testing.assert_close(ordered(values), plain(values), rtol=0.02, atol=0.02)
    again = ordered.plain()
    assert torch.equal(again.weight, plain.weight)
    assert again.bias is plain.bias


def test_one_layer_in_two_places_stays_one() -> None:
    model = in_bf16(tiny_llama())
    first, second = (layer.mlp for layer in model.network.model.layers)
    second.up_proj = first.up_proj

    order_weights(model)

    assert isinstance(first.up_proj, OrderedLinear)
    assert second.up_proj is first.up_proj


def test_a_network_that_reads_weights_past_its_layers_stays_as_it_is() -> None:
    model = in_bf16(tiny_llama())
    part = model.network.model.layers[0].mlp
    part.forward = lambda hidden: part.down_proj(nn.functional.linear(hidden, part.up_proj.weight))
    before = logits(model)

    found = order_weights(model)

    assert found is model
    assert torch.equal(logits(found), before)


def test_other_dtypes_stay_as_they_are() -> None:
    model = tiny_llama()

    assert order_weights(model) is model
    assert not any(isinstance(each, OrderedLinear) for each in model.network.modules())
