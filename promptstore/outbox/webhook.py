"""Events posted to a URL, signed."""

import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import httpx

from promptstore.errors import InvalidInputError, RefusedError
from promptstore.outbox.signing import SigningSecret, signed_headers
from promptstore.outbox.sink import NotDeliveredError
from promptstore.store.watch import Event

TIMEOUT_S = 20.0
LONGEST_RETRY_AFTER_S = 3600.0


class Webhook:
    """A receiver that answers 2xx when it has taken an event. Redirects are failures: the signed bytes go one way.

    The body is `{"type": "promptstore.<operation>", "timestamp": …, "data": {…}}`; `webhook-id` is the same each time
    an event is sent, so that a receiver knows one it has seen. keys: every one signs.
    """

    def __init__(
        self,
        url: str,
        keys: Sequence[SigningSecret],
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if httpx.URL(url).scheme not in {"http", "https"} or not httpx.URL(url).host:
            raise InvalidInputError(f"webhook URL {url!r} is not valid: expected https://host/path")
        self._url = url
        self._keys = keys
        self._clock = clock
        self._client = httpx.Client(timeout=timeout_s, headers={"user-agent": "promptstore"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def __str__(self) -> str:
        return str(httpx.URL(self._url).copy_with(userinfo=b"", query=None))

    def send(self, event: Event) -> None:
        """Returns after a 2xx answer. Raises as `Sink.send`; 410 means that nothing more is wanted."""
        body = json.dumps(message_of(event), ensure_ascii=False, separators=(",", ":")).encode()
        headers = signed_headers(self._keys, message_id(event), int(self._clock()), body)
        headers["content-type"] = "application/json"
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as answer:
                if not answer.is_success:
                    self._complain(answer)
        except httpx.HTTPError as error:
            raise NotDeliveredError(f"{self}: {str(error) or type(error).__name__}") from error

    def _complain(self, answer: httpx.Response) -> None:
        said = f"{self} answered {answer.status_code} {answer.reason_phrase}"
        if answer.status_code == httpx.codes.GONE:
            raise RefusedError(f"{said}: it wants no more events; end this outbox, or correct its URL")
        raise NotDeliveredError(said, retry_after_s=_retry_after_s(answer))


def message_id(event: Event) -> str:
    """Unique over all stores, and without the dots that separate the parts of what is signed."""
    return f"{event.store_id}-{event.commit.number}-{event.index}"


def message_of(event: Event) -> dict[str, object]:
    data = event.to_json()
    return {"type": f"promptstore.{data['op']}", "timestamp": event.commit.at, "data": data}


def _retry_after_s(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isdecimal() else 0.0
