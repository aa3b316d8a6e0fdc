"""The demo's model, opened once per run."""

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.demo_model import MissingModelError, open_demo_model


@pytest.fixture(scope="session")
def smollm2() -> FrozenModel:
    """SmolLM2-135M-Instruct in float32 on the CPU."""
    try:
        return open_demo_model(dtype="float32")
    except MissingModelError as error:
        pytest.skip(str(error))
