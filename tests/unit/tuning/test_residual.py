"""The residual reparametrisation: what is fitted is folded into a plain prompt."""

from itertools import islice

import numpy as np
import pytest
import torch

from promptstore.objects.memory import MemoryObjectStore
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import SENTIMENT, sentiment_job, start_of
from promptstore.tuning.evaluate import evaluate
from promptstore.tuning.events import FitFinished, FitResult
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_checkpoint import ObjectSlot
from promptstore.tuning.fit_job import FitJob, prepare
from promptstore.tuning.fitting import Fitting
from promptstore.tuning.residual import fold, gradients, start_residual

OPTIONS = FitOptions(report_every=2, save_every_s=0)


def residual_job(steps: int = 12, evaluate_every: int = 6) -> FitJob:
    return sentiment_job(residual_width=16, learning_rate=0.1, steps=steps, evaluate_every=evaluate_every)


def finished(model: object, job: FitJob, **how: object) -> FitResult:
    events = fit(model, [job], options=OPTIONS, **how)  # type: ignore[arg-type]
    return next(event.result for event in events if isinstance(event, FitFinished))


def test_a_fit_starts_from_the_initialisers_prompt() -> None:
    model = tiny_llama()
    job = residual_job()
    fitting = Fitting(model, prepare(model, [job])[0])
    np.testing.assert_array_equal(fitting.prompt.detach().numpy(), start_of(model, job))


def test_gradients_of_the_parameters_are_those_of_their_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = start_residual(torch.randn((3, 8), generator=generator), 4, seed=1)
    tensors["up"] = torch.randn((4, 8), generator=generator)
    tensors = {name: each.double() for name, each in tensors.items()}
    outer = torch.randn((3, 8), generator=generator).double()
    for name, found in gradients(tensors, outer).items():
        step = torch.zeros_like(tensors[name])
        step.view(-1)[5] = 1e-6
        up, down = (fold({**tensors, name: tensors[name] + sign * step}) for sign in (1, -1))
        slope = float(((up - down) * outer).sum() / 2e-6)
        assert float(found.view(-1)[5]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_the_network_learns_and_what_comes_out_is_a_plain_prompt() -> None:
    model = tiny_llama()
    job = residual_job(steps=40, evaluate_every=20)
    plain = finished(model, sentiment_job(learning_rate=0.1, steps=40, evaluate_every=20))
    found = finished(model, job)
    assert found.last.embeddings.shape == plain.last.embeddings.shape
    assert not np.allclose(found.last.embeddings, plain.last.embeddings, atol=1e-3)
    assert evaluate(model, SENTIMENT, found.prompt, job.validation).value == pytest.approx(found.value)
    untuned = evaluate(model, SENTIMENT, None, job.validation)
    fitted = evaluate(model, SENTIMENT, found.prompt, job.validation)
    losses = [-each.columns["log_probability"].mean() for each in (untuned, fitted)]
    assert losses[1] < 0.9 * losses[0]


def test_a_fit_resumed_is_the_fit_uninterrupted() -> None:
    model = tiny_llama()
    expected = finished(model, residual_job())
    slot = ObjectSlot(MemoryObjectStore(), "fit")
    list(islice(fit(model, [residual_job()], options=OPTIONS, checkpoint=slot), 11))
    found = finished(model, residual_job(), checkpoint=slot)
    assert found.last.embeddings.tobytes() == expected.last.embeddings.tobytes()
