"""A vLLM server over HTTP: what it serves, whether it is well, and its completions."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from promptstore.errors import InvalidInputError, NotServingError, OverloadedError

# A connection that vLLM closes at the same moment as it is used again would fail a request: give it up earlier.
_KEEP_ALIVE_S = 2.0
_BAD_KEY = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of `/v1/models`. root: the path or the hub's name that vLLM was started with.

    is_adapter: a LoRA on top of another entry. max_length: `--max-model-len`, virtual tokens included.
    """

    id: str
    root: str
    is_adapter: bool
    max_length: int | None


class VllmServer:
    """Asks one server. For one event loop; `close` it there.

    timeout_s: bound on silence, before an answer and between two parts of it.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_S),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[ServedModel]:
        """What it serves; also asks whether its engine is well.

        Raises:
            NotServingError: it cannot be reached, is not well, or is no vLLM.
        """
        async with self._sent("GET", "/health") as answer:
            await answer.aread()
        async with self._sent("GET", "/v1/models") as answer:
            try:
                cards = (await _json(answer))["data"]
                return [_served_model(card) for card in cards]
            except (KeyError, TypeError) as error:
                raise NotServingError(f"what answers at {self.url} lists no models; is it vLLM?") from error

    async def complete(self, body: Mapping[str, Any]) -> Any:
        """A whole answer to `/v1/completions`. Raises as `lines`."""
        async with self._sent("POST", "/v1/completions", body) as answer:
            return await _json(answer)

    async def lines(self, body: Mapping[str, Any]) -> AsyncGenerator[str]:
        """The lines of a streamed answer. Closing the iterator early makes vLLM give up the answer.

        Raises:
            NotServingError: it cannot be reached, fell silent, broke off, failed, or serves no such model.
            OverloadedError: it takes no more requests.
            InvalidInputError: it refuses the request, a log-probability count beyond `--max-logprobs`, say.
        """
        async with self._sent("POST", "/v1/completions", body) as answer:
            async for line in answer.aiter_lines():
                if line:
                    yield line

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with self._http.stream(method, path, json=body) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise self._refusal(answer)
                yield answer
        except httpx.TimeoutException as error:
            raise NotServingError(
                f"vLLM at {self.url} did not answer in time; repeat the request in a moment"
            ) from error
        except httpx.TransportError as error:
            raise NotServingError(
                f"vLLM at {self.url} cannot be reached ({_words(error)}); repeat the request in a moment"
            ) from error

    def _refusal(self, answer: httpx.Response) -> Exception:
        status, message = answer.status_code, _message(answer)
        if status in _BAD_KEY:
            return NotServingError(f"vLLM at {self.url} refuses the gateway's key; set PROMPTSTORE_VLLM_API_KEY")
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return OverloadedError(f"vLLM at {self.url} takes no more requests; repeat the request in a moment")
        if status == httpx.codes.NOT_FOUND or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return NotServingError(f"vLLM at {self.url} answers {status}: {message}; repeat the request in a moment")
        return InvalidInputError(f"vLLM refuses the request ({status}): {message}")


def _served_model(card: Mapping[str, Any]) -> ServedModel:
    length = card.get("max_model_len")
    return ServedModel(
        id=str(card["id"]),
        root=str(card.get("root") or card["id"]),
        is_adapter=card.get("parent") is not None,
        max_length=None if length is None else int(length),
    )


async def _json(answer: httpx.Response) -> Any:
    await answer.aread()
    try:
        return answer.json()
    except ValueError as error:
        raise NotServingError(f"{answer.url} did not answer in JSON; is it vLLM?") from error


def _message(answer: httpx.Response) -> str:
    """vLLM's own words, bounded: they may repeat what was sent."""
    try:
        found = answer.json()
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        text = answer.text
    return text[:300]


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
