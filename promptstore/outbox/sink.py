"""Where events go."""

from typing import Protocol

from promptstore.errors import PromptStoreError
from promptstore.store.watch import Event


class NotDeliveredError(PromptStoreError):
    """The receiver did not take the event, which is offered again. retry_after_s: it asked for so long a pause."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Sink(Protocol):
    """Takes one event at a time."""

    def send(self, event: Event) -> None:
        """Returns once the receiver has taken it. May be called again with the same event.

        Raises:
            NotDeliveredError: it did not, or its answer was lost. RefusedError: it wants no more events, ever.
        """
        ...
