"""The demo's model for tests with the marker `lm`, from this user's cache."""

from promptstore.errors import NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.settings import load_settings

DEMO_MODEL = "asset:smollm2-135m"


class MissingModelError(Exception):
    """The model was not fetched on this machine; `promptstore assets fetch` brings it."""


def open_demo_model(*, dtype: str = "float32") -> FrozenModel:
    """SmolLM2-135M-Instruct on the CPU.

    Raises:
        MissingModelError: it is not in the cache; tests skip.
    """
    try:
        return open_model(DEMO_MODEL, cache_dir=load_settings().cache_dir, device="cpu", dtype=dtype)
    except NotFoundError as error:
        raise MissingModelError(str(error)) from error
