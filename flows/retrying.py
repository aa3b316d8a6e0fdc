"""Which failures are worth another try."""

from typing import Any

from prefect.client.schemas.objects import State

from promptstore.errors import (
    CommitOutcomeUnknownError,
    NotServingError,
    OverloadedError,
    PromptStoreError,
    StoreUnavailableError,
)

LATER = (StoreUnavailableError, CommitOutcomeUnknownError, NotServingError, OverloadedError)


def is_passing(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether the same call may succeed later: a bad request or a refusal never will, a lost connection may."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, LATER) or not isinstance(error, PromptStoreError)
