"""What is known of a model without running it."""

from typing import Any, Protocol

import torch

from promptstore.core.fingerprint import BaseModelFingerprint


class DescribedModel(Protocol):
    """Identity, tokenizer and bounds: enough to encode inputs and to refuse prompts of other models.

    `FrozenModel` is one that runs here; `InputLayer` stands for one that another server runs.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> BaseModelFingerprint: ...
    @property
    def is_encoder_decoder(self) -> bool: ...
    @property
    def max_length(self) -> int | None:
        """Positions the model has, virtual tokens included; `None` when they are unbounded."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
