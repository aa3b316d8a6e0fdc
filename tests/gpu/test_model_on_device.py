"""What holds for models on the CPU holds on the device there is: a GPU if this machine has one."""

from pathlib import Path

import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.placement import choose_device, choose_dtype
from promptstore.lm.scoring import label_logits, target_log_probabilities
from promptstore.lm.source import open_model
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5

DEVICE = choose_device("auto")
LABELS = (11, 42, 300)


@pytest.fixture(params=[tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> FrozenModel:
    made: FrozenModel = request.param(hidden_size=64)
    made.network.to(DEVICE)
    return made


def random_rows(model: FrozenModel) -> tuple[list[torch.Tensor], list[list[int]]]:
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randn(length, model.hidden_size, generator=generator).to(DEVICE) for length in (3, 20, 1, 100)]
    inputs = [torch.randint(3, 480, (length,), generator=generator).tolist() for length in (5, 200, 1, 40)]
    return prompts, inputs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_a_mixed_batch_answers_each_row_as_if_it_were_alone(
    model: FrozenModel, dtype: torch.dtype, tolerance: float
) -> None:
    model.network.to(dtype)
    prompts, inputs = random_rows(model)

    together = label_logits(model, lay_out(model, prompts, inputs), LABELS)

    assert (together.device.type, together.dtype) == (DEVICE.type, torch.float32)
    for row, (prompt, ids) in enumerate(zip(prompts, inputs, strict=True)):
        alone = label_logits(model, lay_out(model, [prompt], [ids]), LABELS)[0]
        torch.testing.assert_close(together[row], alone, atol=tolerance, rtol=0)


def test_a_prompts_gradient_is_that_of_the_cpu(model: FrozenModel) -> None:
    prompts, inputs = random_rows(model)
    targets = [[9, 1], [20, 30, 40], [7], [300, 1]]
    gradients = []
    for device in (DEVICE, torch.device("cpu")):
        model.network.to(device)
        ours = [prompt.to(device).requires_grad_() for prompt in prompts]
        loss = target_log_probabilities(model, ours, inputs, targets).sum()
        gradients.append([gradient.cpu() for gradient in torch.autograd.grad(loss, ours)])

    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, atol=1e-2 * float(there.abs().max()), rtol=1e-2)


def test_the_weights_digest_does_not_depend_on_the_device(model: FrozenModel) -> None:
    here = model.weights_digest_now()

    model.network.to("cpu")

    assert model.weights_digest_now() == here


def test_a_folder_opens_on_the_device_in_the_dtype_that_suits_it(tmp_path: Path) -> None:
    original = tiny_llama()
    original.network.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)

    opened = open_model(str(tmp_path), cache_dir=tmp_path)

    assert opened.device.type == DEVICE.type
    assert opened.dtype == choose_dtype("auto", DEVICE)
    assert opened.fingerprint.identity == original.fingerprint.identity
