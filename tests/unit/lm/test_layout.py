"""A row's answer never depends on who shares its batch."""

from collections.abc import Callable

import pytest
import torch

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import answer_hidden, label_logits, target_log_probabilities
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5

ARCHITECTURES = [tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5]
LABELS = (11, 42, 300)
LENGTHS = ((3, 5), (7, 30), (1, 1), (0, 12), (20, 2))


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__, scope="module")
def model(request: pytest.FixtureRequest) -> FrozenModel:
    make: Callable[[], FrozenModel] = request.param
    return make()


def random_rows(model: FrozenModel) -> tuple[list[torch.Tensor | None], list[list[int]]]:
    generator = torch.Generator().manual_seed(7)
    prompts: list[torch.Tensor | None] = []
    inputs = []
    for prompt_length, input_length in LENGTHS:
        prompt = torch.randn(prompt_length, model.hidden_size, generator=generator) if prompt_length else None
        prompts.append(prompt)
        inputs.append(torch.randint(3, 480, (input_length,), generator=generator).tolist())
    return prompts, inputs


def test_a_mixed_batch_answers_each_row_as_if_it_were_alone(model: FrozenModel) -> None:
    prompts, inputs = random_rows(model)

    together = label_logits(model, lay_out(model, prompts, inputs), LABELS)

    for row, (prompt, ids) in enumerate(zip(prompts, inputs, strict=True)):
        alone = label_logits(model, lay_out(model, [prompt], [ids]), LABELS)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)
    assert (together.amax(dim=0) - together.amin(dim=0)).min() > 0.1, (
        "rows must differ for the comparison to mean anything"
    )


def test_without_prompts_the_answer_is_the_published_models_own(model: FrozenModel) -> None:
    _, inputs = random_rows(model)

    ours = model.head.logits(answer_hidden(model, lay_out(model, [None] * len(inputs), inputs)))

    for row, ids in enumerate(inputs):
        extra = (
            {"decoder_input_ids": torch.tensor([[model.decoder_start_token_id]])} if model.is_encoder_decoder else {}
        )
        published = model.network(input_ids=torch.tensor([ids]), **extra).logits[0, -1]
        torch.testing.assert_close(ours[row], published, atol=1e-4, rtol=0)


def test_a_prompt_of_token_embeddings_answers_as_those_tokens_do(model: FrozenModel) -> None:
    words, ids = [5, 80, 300], [17, 200, 9, 33]
    prompt = model.embed(torch.tensor([words]))[0]

    as_prompt = label_logits(model, lay_out(model, [prompt, None], [ids, [4] * 40]), LABELS)[0]
    as_tokens = label_logits(model, lay_out(model, [None], [words + ids]), LABELS)[0]

    torch.testing.assert_close(as_prompt, as_tokens, atol=1e-4, rtol=0)


def test_only_prompts_receive_gradients_and_each_only_its_own(model: FrozenModel) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randn(length, model.hidden_size, generator=generator).requires_grad_() for length in (2, 6)]

    logits = label_logits(model, lay_out(model, prompts, [[5, 6, 7], [8] * 20]), LABELS)
    torch.autograd.backward(logits[0].square().sum())

    first, second = prompts
    assert first.grad is not None
    assert bool((first.grad.abs().sum(dim=1) > 0).all()), "every virtual token of the row takes part"
    assert second.grad is not None
    assert not bool(second.grad.any()), "another row's prompt does not"
    assert all(weight.grad is None and not weight.requires_grad for weight in model.network.parameters())


def test_target_log_probabilities_do_not_depend_on_the_batch(model: FrozenModel) -> None:
    prompts, inputs = random_rows(model)
    targets = [[9], [20, 30, 40], [7, 1], [300, 1], [1]]

    together = torch.split(
        target_log_probabilities(model, prompts, inputs, targets), [len(target) for target in targets]
    )

    for row, target in enumerate(targets):
        alone = target_log_probabilities(model, [prompts[row]], [inputs[row]], [target])
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=0)


def test_target_log_probabilities_are_the_published_models_own(model: FrozenModel) -> None:
    ids, target = [17, 200, 9, 33], [20, 30, 40, 1]

    ours = target_log_probabilities(model, [None, None], [ids, [3] * 11], [target, [5]])[: len(target)]

    if model.is_encoder_decoder:
        decoder = torch.tensor([[model.decoder_start_token_id, *target[:-1]]])
        logits = model.network(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0]
    else:
        logits = model.network(input_ids=torch.tensor([ids + target[:-1]])).logits[0, len(ids) - 1 :]
    expected = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(target)[:, None])[:, 0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_prompt_of_another_width_is_refused(model: FrozenModel) -> None:
    with pytest.raises(InvalidInputError, match=r"shape \[4, 31\], expected \[P, 32\]"):
        lay_out(model, [torch.zeros(4, 31)], [[1, 2]])


def test_a_row_without_tokens_is_refused(model: FrozenModel) -> None:
    with pytest.raises(InvalidInputError, match="input 1 of the batch has no tokens"):
        lay_out(model, [None, None], [[1], []])


def test_a_row_longer_than_the_model_is_refused() -> None:
    small = tiny_gpt2(max_length=16)
    lay_out(small, [torch.zeros(6, 32)], [[1] * 10])

    with pytest.raises(InvalidInputError, match="6 virtual tokens and 11 tokens, the model has 16 positions"):
        lay_out(small, [torch.zeros(6, 32)], [[1] * 11])
