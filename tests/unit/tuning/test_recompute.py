"""Activations computed again instead of kept: the same gradients from less memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5
from promptstore.testing.tuning_tasks import echo_job, sentiment_job
from promptstore.tuning.events import FitFinished, StepReport
from promptstore.tuning.fit import FitOptions, fit


def fitted(model: FrozenModel, *, is_on: bool) -> tuple[list[float], list[np.ndarray], int]:
    """Losses and gradient norms, the prompts, and the bytes that a step keeps outside of its layers."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    jobs = [sentiment_job("a", learning_rate=0.003, steps=3), echo_job("b", learning_rate=0.003, steps=3)]
    options = FitOptions(report_every=1, recompute_activations=is_on)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        events = list(fit(model, jobs, options=options))
    figures = [value for each in events if isinstance(each, StepReport) for value in (each.loss, each.gradient_norm)]
    return figures, [each.result.last.embeddings for each in events if isinstance(each, FitFinished)], kept


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma, tiny_t5])
def test_the_same_steps_from_less_memory(make: Callable[[], FrozenModel]) -> None:
    model = make()
    figures, prompts, kept = fitted(model, is_on=False)
    again, same_prompts, kept_less = fitted(model, is_on=True)
    assert again == pytest.approx(figures, rel=1e-4)
    for ours, theirs in zip(same_prompts, prompts, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert kept_less < 0.6 * kept
    assert all("forward" not in vars(module) for module in model.network.modules())
