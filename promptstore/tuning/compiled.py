"""What of a layer is not attention, compiled: norms and feed-forward parts in few passes over memory."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel

# By the names that transformers gives them. Attention is left out: rows, lengths and its own kernels change every step.
_PARTS = re.compile(r"MLP$|RMSNorm$|LayerFF$")


@contextmanager
def compiled_layers(model: FrozenModel, *, is_on: bool) -> Iterator[None]:
    """Within this block these parts run compiled (`torch.compile`, any number of rows), if `is_on`.

    All layers share what is compiled for the first; that takes half a minute to a minute, once per process.

    Raises:
        InvalidInputError: this machine has no compiler for the model's device.
    """
    parts = []
    if is_on:
        require_compiler(model.device.type)
        parts = [part for part in model.network.modules() if _PARTS.search(type(part).__name__)]
    for part in parts:
        part.compile(dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None  # noqa: SLF001 - torch has no other way back


def require_compiler(device_type: str) -> None:
    """Raises InvalidInputError: there is none."""
    if device_type == "cpu":
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise InvalidInputError(
                "PROMPTSTORE_COMPILE_LAYERS needs a C++ compiler on a CPU (g++, say); install one, or unset it"
            )
    elif importlib.util.find_spec("triton") is None:
        raise InvalidInputError("PROMPTSTORE_COMPILE_LAYERS needs triton on a GPU; pip install triton, or unset it")
