"""The asynchronous client. What it asks, reads and tries again is shared with the blocking one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from promptstore.client.answers import (
    MODELS,
    STATE,
    Asked,
    Classification,
    Completion,
    Input,
    SamplingOptions,
    classifications,
    classify_request,
    complete_request,
    completion,
    full_state,
    model_request,
)
from promptstore.client.attempts import DEFAULT_RETRIES, Attempts, Retries, is_answer
from promptstore.client.blocking import DEFAULT_TIMEOUT_S, DEFAULT_URL, key_header
from promptstore.client.streams import LAST_LINE, AsyncStream, Chunk, broken_off, chunk_of


class AsyncClient:
    """As `promptstore.client.Client`, for coroutines of one event loop."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=key_header(api_key), timeout=timeout_s, transport=transport
        )
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def classify(
        self, refs: str | Sequence[str], inputs: Input | Sequence[Input], *, caller: str | None = None
    ) -> list[Classification]:
        """Every input under every ref, inputs outermost."""
        return classifications((await self._send(classify_request(refs, inputs, caller))).json())

    async def complete(
        self, ref: str, given: Input, *, caller: str | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """The text that continues one input under its task's template."""
        return completion((await self._send(complete_request(ref, given, caller, options))).json())

    def stream(
        self, ref: str, given: Input, *, caller: str | None = None, **options: Unpack[SamplingOptions]
    ) -> AsyncStream:
        """The same text, piece by piece, and from the first one on what is writing it. Asked again only before that."""
        return AsyncStream(self._chunks(complete_request(ref, given, caller, options, is_stream=True)))

    async def models(self) -> list[dict[str, Any]]:
        """The aliases that are served, as the server describes them."""
        return list((await self._send(MODELS)).json()["data"])

    async def state(self) -> dict[str, Any]:
        """What the server that answers, ready or not, knows of the store and refuses to serve: its `/readyz`."""
        return full_state((await self._send(STATE)).json())

    async def trials(self) -> list[dict[str, Any]]:
        """Versions on trial, and how they do at the server that answers."""
        return list((await self.state())["trials"])

    async def model(self, ref: str) -> dict[str, Any]:
        """The version that `ref` names now, and what its task reads and answers, as the server describes them."""
        return dict((await self._send(model_request(ref))).json())

    async def _chunks(self, asked: Asked) -> AsyncGenerator[Chunk]:
        answer = await self._send(asked, is_stream=True)
        try:
            async for line in answer.aiter_lines():
                if line == LAST_LINE:
                    return
                if (chunk := chunk_of(line)) is not None:
                    yield chunk
        except httpx.TransportError as error:
            raise broken_off(error) from error
        finally:
            await answer.aclose()
        raise broken_off(None)

    async def _send(self, asked: Asked, *, is_stream: bool = False) -> httpx.Response:
        attempts = Attempts(self._retries)
        while True:
            request = self._http.build_request(asked.method, asked.path, json=asked.body, headers=asked.headers)
            try:
                answer = await self._http.send(request, stream=is_stream)
                if is_answer(answer, asked):
                    return answer
                await answer.aread()
                wait_s = attempts.wait_after_answer(answer)
            except httpx.TransportError as error:
                wait_s = attempts.wait_after_failure(error, request.url)
            await asyncio.sleep(wait_s)
