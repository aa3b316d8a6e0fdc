"""Which tokens end an answer."""

from typing import Any


def end_token_ids(tokenizer: Any, generation_settings: Any) -> frozenset[int]:
    """The tokens that end an answer, by the tokenizer and by the model's generation settings, which may be `None`."""
    configured = getattr(generation_settings, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])]
    return frozenset(int(token) for token in found if token is not None)
