"""How commands open the base model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel
    from promptstore.settings import Settings


def open_base_model(model: str | None, settings: "Settings | None" = None) -> "FrozenModel":
    """The base model that `model`, or the setting PROMPTSTORE_MODEL, names."""
    from promptstore.lm.source import open_model
    from promptstore.settings import load_settings

    chosen = settings or load_settings()
    return open_model(model or chosen.model, cache_dir=chosen.cache_dir, device=chosen.device, dtype=chosen.dtype)
