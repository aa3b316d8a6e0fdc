"""Starting from the stored prompt that helps a new task most."""

from dataclasses import replace

import numpy as np
import pytest

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import IncompatibleModelError, InvalidInputError
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import SENTIMENT, echo_job, sentiment_job, sentiment_rows
from promptstore.tuning.evaluate import evaluate
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit import fit
from promptstore.tuning.nearest import rank_by_transfer


def test_the_prompt_of_the_same_task_is_nearer_than_that_of_another() -> None:
    model = tiny_llama()
    same = sentiment_job("same", steps=100, batch_size=8, learning_rate=0.1, num_virtual_tokens=8)
    jobs = [replace(same, train=sentiment_rows(300)), echo_job("other", steps=30, learning_rate=0.1)]
    fitted = {event.job: event.result.last for event in fit(model, jobs) if isinstance(event, FitFinished)}
    rows = sentiment_rows(50, seed=7)
    found = rank_by_transfer(model, SENTIMENT, rows, fitted)
    assert [each.name for each in found] == ["same", "other"]
    alone = evaluate(model, SENTIMENT, fitted["same"], rows)
    assert found[0].loss == pytest.approx(-np.mean(alone.columns["log_probability"]), rel=1e-4)


def test_there_must_be_a_prompt_and_it_must_be_of_this_model() -> None:
    model = tiny_llama()
    with pytest.raises(InvalidInputError, match="no prompt to start from"):
        rank_by_transfer(model, SENTIMENT, sentiment_rows(5), {})
    other = BaseModelFingerprint("LlamaForCausalLM", 32, "0" * 64, "0" * 64, "other")
    with pytest.raises(IncompatibleModelError, match="task:1 was fitted to other"):
        rank_by_transfer(
            model, SENTIMENT, sentiment_rows(5), {"task:1": SoftPrompt(np.ones((2, 32), np.float32), other)}
        )
