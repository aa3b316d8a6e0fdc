"""The port to a tracking server: takes one event at a time, in order."""

from typing import Protocol

from promptstore.errors import PromptStoreError
from promptstore.tracking.events import Event


class TrackingUnavailableError(PromptStoreError):
    """The tracking server cannot be reached or answers with a passing fault; send the event again later."""


class TrackingRefusedError(PromptStoreError):
    """The tracking server will never take this event; drop it and say so."""


class Sink(Protocol):
    """A tracking server. Used by one thread at a time; opens its connection with the first event."""

    def send(self, event: Event) -> None:
        """Tell the server; telling it twice changes nothing.

        Raises:
            TrackingUnavailableError: not told, try later.
            TrackingRefusedError: not told and never will be.
        """

    def run_id(self, key: str) -> str | None:
        """The server's id of a run that was sent; `None` before that."""
