"""The base model takes no gradient, stays in eval mode, and its digest tells if it moved."""

import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_logits
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5


@pytest.fixture(params=[tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> FrozenModel:
    made: FrozenModel = request.param()
    return made


def test_no_weight_takes_a_gradient_and_dropout_is_off(model: FrozenModel) -> None:
    assert not any(weight.requires_grad for weight in model.network.parameters())
    assert not any(module.training for module in model.network.modules())


def test_the_weights_digest_is_the_same_after_steps_on_a_prompt(model: FrozenModel) -> None:
    before = model.weights_digest_now()
    prompt = torch.zeros(4, model.hidden_size, requires_grad=True)
    optimiser = torch.optim.AdamW([prompt], lr=0.3)
    start = prompt.detach().clone()

    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(
            label_logits(model, lay_out(model, [prompt, prompt], [[5, 6], [7, 8, 9]]), (11, 12)), torch.tensor([0, 1])
        )
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()

    assert not torch.equal(prompt, start)
    assert model.weights_digest_now() == before


def test_the_weights_digest_changes_with_one_bit_of_one_weight(model: FrozenModel) -> None:
    before = model.weights_digest_now()
    weight = list(model.network.parameters())[-1]

    weight.data.view(torch.uint8).reshape(-1)[-1] ^= 1

    assert model.weights_digest_now() != before


def test_token_embeddings_are_what_the_network_itself_feeds_its_layers() -> None:
    gemma = tiny_gemma()
    ids = torch.tensor([[5, 80, 300]])

    scaled = gemma.embed(ids) / gemma.embeddings[ids]

    torch.testing.assert_close(scaled, torch.full_like(scaled, 32**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        gemma.network(inputs_embeds=gemma.embed(ids)).logits, gemma.network(input_ids=ids).logits, atol=1e-5, rtol=0
    )


def test_a_vocabulary_without_pad_token_serves_padded_batches() -> None:
    llama = tiny_llama()
    assert llama.tokenizer.pad_token_id is None

    padded = label_logits(llama, lay_out(llama, [None, None], [[5], [6] * 9]), (11, 12))[0]

    torch.testing.assert_close(
        padded, label_logits(llama, lay_out(llama, [None], [[5]]), (11, 12))[0], atol=1e-4, rtol=0
    )


def test_lengths_are_the_positions_that_the_model_has() -> None:
    assert tiny_gpt2(max_length=48).max_length == 48
    assert tiny_t5().max_length is None, "relative positions have no end"


def test_a_twin_has_the_same_weights_and_a_network_of_its_own(model: FrozenModel) -> None:
    twin = model.twin()
    pairs = zip(model.network.named_parameters(), twin.network.named_parameters(), strict=True)
    assert all(ours is theirs for (_, ours), (_, theirs) in pairs)
    assert twin.head.weight.data_ptr() == model.head.weight.data_ptr()
    assert twin.network is not model.network
    assert twin.network.config is not model.network.config
    layout = lay_out(model, [torch.ones(3, model.hidden_size)], [[5, 6]])
    torch.testing.assert_close(label_logits(twin, layout, (11, 12)), label_logits(model, layout, (11, 12)))
