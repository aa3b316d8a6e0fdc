"""Compiled layers: the same numbers, and a network that is its own again afterwards."""

import shutil

import numpy as np
import pytest

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import echo_job, sentiment_job
from promptstore.tuning.events import FitFinished, StepReport
from promptstore.tuning.fit import FitOptions, fit


def fitted(model: FrozenModel, *, is_on: bool) -> tuple[list[float], list[np.ndarray]]:
    jobs = [sentiment_job("a", learning_rate=0.003, steps=3), echo_job("b", learning_rate=0.003, steps=3)]
    events = list(fit(model, jobs, options=FitOptions(report_every=1, compile_layers=is_on)))
    figures = [value for each in events if isinstance(each, StepReport) for value in (each.loss, each.gradient_norm)]
    return figures, [each.result.last.embeddings for each in events if isinstance(each, FitFinished)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_same_steps() -> None:
    model = tiny_llama()
    figures, prompts = fitted(model, is_on=False)
    again, same_prompts = fitted(model, is_on=True)
    assert again == pytest.approx(figures, rel=1e-4)
    for ours, theirs in zip(same_prompts, prompts, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert all(module._compiled_call_impl is None for module in model.network.modules())


def test_without_a_compiler_it_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidInputError, match="needs a C\\+\\+ compiler"):
        list(fit(tiny_llama(), [sentiment_job()], options=FitOptions(compile_layers=True)))
