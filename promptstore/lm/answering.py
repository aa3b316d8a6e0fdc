"""A model that only answers, as fast as this machine lets it."""

from dataclasses import replace
from pathlib import Path

from promptstore.lm.compiled import compile_network
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.ordered import order_weights
from promptstore.lm.row_attention import DTYPES, load_row_attention


def for_answers(model: FrozenModel, *, folder: Path, is_compiled: bool = False) -> FrozenModel:
    """The same model for answering alone; it takes the network over. Answers are what they were up to rounding.

    On a CPU: weights in the order they are multiplied in, and attention over packed rows by a kernel of our own where
    there is a C++ compiler. folder: where what is compiled is kept, as trusted as the code. is_compiled: the network is
    compiled, too; raises as `promptstore.lm.compiled.compile_network`.
    """
    model = order_weights(model)
    if model.device.type == "cpu" and model.takes_positions and model.dtype in DTYPES:
        model = replace(model, row_attention=load_row_attention(folder))
    return compile_network(model, folder=folder) if is_compiled else model
