"""Our optimisers take the steps of the reference ones."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.optimization import Adafactor

from promptstore.tuning.config import TuneConfig
from promptstore.tuning.optimiser import apply_step, clip, start_state


def gradients(steps: int = 20) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        yield torch.randn(5, 8, generator=generator) * (0.1 + step)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adamw_is_torchs(decay: float) -> None:
    config = TuneConfig(learning_rate=0.3, schedule="constant", warmup_steps=0, weight_decay=decay)
    ours = torch.full((5, 8), 2.0)
    theirs = torch.nn.Parameter(ours.clone())
    reference = torch.optim.AdamW([theirs], lr=0.3, weight_decay=decay)
    state = start_state("adamw", ours)
    for step, gradient in enumerate(gradients(), start=1):
        apply_step(ours, gradient, state, config, step)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_adafactor_is_the_one_of_the_paper() -> None:
    """Lester et al. 2021: constant rate 0.3, weight decay 1e-5, decay exponent 0.8, parameter scaling off."""
    config = TuneConfig(
        optimiser="adafactor", learning_rate=0.3, schedule="constant", warmup_steps=0, weight_decay=1e-5
    )
    ours = torch.full((5, 8), 2.0)
    theirs = torch.nn.Parameter(ours.clone())
    reference = Adafactor(
        [theirs], lr=0.3, weight_decay=1e-5, scale_parameter=False, relative_step=False, warmup_init=False
    )
    state = start_state("adafactor", ours)
    for step, gradient in enumerate(gradients(), start=1):
        apply_step(ours, gradient, state, config, step)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert sum(tensor.numel() for tensor in state.values()) == 5 + 8


@pytest.mark.parametrize("bound", [0.5, 100.0, 0.0])
def test_clipping_is_torchs_and_tells_the_norm_before(bound: float) -> None:
    gradient = next(gradients()) * 3
    parameter = torch.nn.Parameter(torch.zeros(5, 8))
    parameter.grad = gradient.clone()
    expected_norm = torch.nn.utils.clip_grad_norm_([parameter], bound or float("inf"))
    clipped, norm = clip(gradient, bound)
    torch.testing.assert_close(clipped, parameter.grad)
    torch.testing.assert_close(norm, expected_norm)
