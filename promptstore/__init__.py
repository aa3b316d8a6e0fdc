"""promptstore: tune, understand, version, promote and serve soft prompts, correct in any batch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptstore.client import AsyncClient, Client
    from promptstore.core.prompt import SoftPrompt
    from promptstore.core.ref import PromptRef
    from promptstore.core.task import DataSource, Label, TaskSpec
    from promptstore.store.prompt_store import PromptStore
    from promptstore.wiring import open_store

__all__ = [
    "AsyncClient",
    "Client",
    "DataSource",
    "Label",
    "PromptRef",
    "PromptStore",
    "SoftPrompt",
    "TaskSpec",
    "open_store",
]

_HOMES = {
    "AsyncClient": "promptstore.client",
    "Client": "promptstore.client",
    "DataSource": "promptstore.core.task",
    "Label": "promptstore.core.task",
    "PromptRef": "promptstore.core.ref",
    "PromptStore": "promptstore.store.prompt_store",
    "SoftPrompt": "promptstore.core.prompt",
    "TaskSpec": "promptstore.core.task",
    "open_store": "promptstore.wiring",
}


def __getattr__(name: str) -> Any:
    """Public names, imported at first use, so that `import promptstore` pulls in no driver and no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'promptstore' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
