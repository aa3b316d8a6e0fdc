"""When to ask again, and which error it is when that did not help. No I/O and no sleeping."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from promptstore.client.answers import STATE, Asked
from promptstore.errors import (
    ConflictError,
    CorruptError,
    IncompatibleModelError,
    InvalidInputError,
    NotFoundError,
    NotServingError,
    OverloadedError,
    PromptStoreError,
    RefusedError,
    StoreUnavailableError,
    UntrustedError,
)

_PASSING = {408, 429, 502, 503, 504}
_BY_CODE: dict[str, type[PromptStoreError]] = {
    "incompatible_model": IncompatibleModelError,
    "store_unavailable": StoreUnavailableError,
    "corrupt": CorruptError,
    "untrusted": UntrustedError,
}
_BY_STATUS: dict[int, type[PromptStoreError]] = {
    400: InvalidInputError,
    401: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    408: OverloadedError,
    409: ConflictError,
    413: InvalidInputError,
    429: OverloadedError,
    502: NotServingError,
    503: NotServingError,
    504: NotServingError,
}


def is_answer(answer: httpx.Response, asked: Asked) -> bool:
    """Whether it is what was asked for: a success, or of a server's state also what one that is not ready tells.

    answer: read, unless it is a success.
    """
    if answer.is_success or asked is not STATE or answer.status_code != 503:
        return answer.is_success
    try:
        told = answer.json()
    except ValueError:  # of a load balancer, perhaps
        return False
    return isinstance(told, dict) and "status" in told


@dataclass(frozen=True, slots=True)
class Retries:
    """How often to ask a server that is busy, restarting or gone. Waits double from `first_wait_s`, with jitter.

    longest_wait_s: between two attempts, whatever the server asks for. deadline_s: after the first attempt's start, no
    other one starts later.
    """

    attempts: int = 5
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    deadline_s: float = 60.0

    def waits(self) -> Iterator[float]:
        """Seconds before the second attempt, the third, and so on."""
        wait = self.first_wait_s
        for _ in range(self.attempts - 1):
            yield min(wait, self.longest_wait_s) * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, no secret
            wait *= 2


NO_RETRIES = Retries(attempts=1)
DEFAULT_RETRIES = Retries()


class Attempts:
    """One request's attempts: after each that failed, how long to wait before the next. clock: monotonic seconds."""

    def __init__(self, retries: Retries, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._retries = retries
        self._waits = retries.waits()
        self._clock = clock
        self._deadline = clock() + retries.deadline_s

    def wait_after_answer(self, answer: httpx.Response) -> float:
        """Seconds to wait after an answer that is no success: what the server asks for, within bounds.

        Raises:
            a subclass of PromptStoreError: asking again does not help, or the attempts or the time are used up.
        """
        asked = answer.headers.get("retry-after", "")
        wait = self._next(float(asked) if asked.isdecimal() else 0.0) if answer.status_code in _PASSING else None
        if wait is None:
            raise error_of(answer)
        return wait

    def wait_after_failure(self, error: httpx.TransportError, url: httpx.URL) -> float:
        """Seconds to wait after no answer at all.

        Raises:
            NotServingError: the attempts or the time are used up.
        """
        wait = self._next()
        if wait is None:
            what = str(error) or type(error).__name__
            raise NotServingError(
                f"no answer from {url}: {what}; start `promptstore serve` or name another server"
            ) from error
        return wait

    def _next(self, at_least_s: float = 0.0) -> float | None:
        """The next wait; `None` if no attempt may follow."""
        wait = next(self._waits, None)
        if wait is None:
            return None
        wait = min(max(wait, at_least_s), self._retries.longest_wait_s)
        return wait if self._clock() + wait <= self._deadline else None


def error_of(answer: httpx.Response) -> PromptStoreError:
    """The error that an answer stands for, with the server's own message."""
    try:
        found = answer.json()["error"]
        message, code = str(found["message"]), str(found["code"])
    except (ValueError, KeyError, TypeError):
        message, code = answer.text[:200], ""
    kind = _BY_CODE.get(code) or _BY_STATUS.get(answer.status_code, PromptStoreError)
    return kind(f"{answer.request.url} answered {answer.status_code}: {message}")
