"""How much one pass may compute before memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel

Result = TypeVar("Result")

# Measured on two cores: more gains nothing and takes memory.
CPU_TOKENS = 1024
GPU_TOKENS = 32768
# Values kept for the backward pass, per position, layer and unit of width, of the usual decoder in transformers.
KEPT_PER_UNIT = 40
SHARE_OF_FREE_MEMORY = 0.5


class TokenBudget:
    """Positions per pass. Halves when the device runs out of memory; rows stay in the same step, so results do too.

    has_news: it was halved for the first time, and nobody has said so yet.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.has_news = False
        self._was_halved = False

    @classmethod
    def of(cls, model: FrozenModel) -> "TokenBudget":
        """A first guess from the device's free memory."""
        if model.device.type != "cuda":
            return cls(CPU_TOKENS)
        free, _ = torch.cuda.mem_get_info(model.device)
        config = model.network.config.get_text_config()
        kept_bytes = config.num_hidden_layers * model.hidden_size * KEPT_PER_UNIT * model.dtype.itemsize
        return cls(max(256, min(GPU_TOKENS, int(free * SHARE_OF_FREE_MEMORY / kept_bytes))))

    def run(self, work: Callable[[int], Result]) -> Result:
        """`work(tokens)`, again with half the tokens if memory runs out; it must begin from the beginning each time.

        Raises:
            InvalidInputError: one row alone does not fit.
        """
        while True:
            try:
                return work(self.tokens)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self.tokens == 1:
                    raise InvalidInputError(
                        "a single row does not fit the device's memory; lower max_input_tokens or "
                        "num_virtual_tokens, fit fewer prompts at a time, or take a smaller base model"
                    ) from error
            # Out here the error, whose traceback holds the tensors of the pass, is gone.
            self.tokens = max(1, self.tokens // 2)
            self.has_news, self._was_halved = self.has_news or not self._was_halved, True
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
