"""Compiled layers. That they fit the same is tested on whatever device there is: tests/gpu."""

import pytest

from promptstore.errors import InvalidInputError
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import sentiment_job
from promptstore.tuning.fit import FitOptions, fit


def test_without_a_compiler_it_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InvalidInputError, match="needs a C\\+\\+ compiler"):
        list(fit(tiny_llama(), [sentiment_job()], options=FitOptions(compile_layers=True)))
