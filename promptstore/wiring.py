"""Composition root: settings in, objects out. Imports no torch."""

import getpass
from typing import TYPE_CHECKING

from promptstore.settings import Settings

if TYPE_CHECKING:
    from promptstore.store.prompt_store import PromptStore


def actor_of(settings: Settings) -> str:
    """Who the log says makes a change: the setting, or the login name."""
    if settings.actor:
        return settings.actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def open_prompt_store(settings: Settings) -> "PromptStore":
    """The store at `settings.store_url`; created if its place is empty.

    Raises:
        InvalidInputError: a URL of an unknown kind.
        StoreUnavailableError: the object store cannot be reached.
        UnsupportedStoreError: it ignores create-only writes.
    """
    raise AssertionError("written with the ledger")
