"""The blocking client."""

import time
from collections.abc import Generator, Sequence
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
from promptstore.client.streams import LAST_LINE, Chunk, Stream, broken_off, chunk_of

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT_S = 60.0


class Client:
    """Asks a server and waits for it. Many threads may share one.

    transport: replaces the network, in tests. caller, in its methods: who is asking, for the server to keep with one
    version while another is on trial; without it each request is drawn by itself.

    Every method raises what the server says, as this package's errors: InvalidInputError, NotFoundError,
    IncompatibleModelError, RefusedError (key or scope); OverloadedError and NotServingError after the last attempt.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=key_header(api_key), timeout=timeout_s, transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def classify(
        self, refs: str | Sequence[str], inputs: Input | Sequence[Input], *, caller: str | None = None
    ) -> list[Classification]:
        """Every input under every ref, inputs outermost."""
        return classifications(self._send(classify_request(refs, inputs, caller)).json())

    def complete(
        self, ref: str, given: Input, *, caller: str | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """The text that continues one input under its task's template."""
        return completion(self._send(complete_request(ref, given, caller, options)).json())

    def stream(
        self, ref: str, given: Input, *, caller: str | None = None, **options: Unpack[SamplingOptions]
    ) -> Stream:
        """The same text, piece by piece, and from the first one on what is writing it. Asked again only before that."""
        return Stream(self._chunks(complete_request(ref, given, caller, options, is_stream=True)))

    def models(self) -> list[dict[str, Any]]:
        """The aliases that are served, as the server describes them."""
        return list(self._send(MODELS).json()["data"])

    def state(self) -> dict[str, Any]:
        """What the server that answers, ready or not, knows of the store and refuses to serve: its `/readyz`."""
        return full_state(self._send(STATE).json())

    def trials(self) -> list[dict[str, Any]]:
        """Versions on trial, and how they do at the server that answers."""
        return list(self.state()["trials"])

    def model(self, ref: str) -> dict[str, Any]:
        """The version that `ref` names now, and what its task reads and answers, as the server describes them."""
        return dict(self._send(model_request(ref)).json())

    def _chunks(self, asked: Asked) -> Generator[Chunk]:
        answer = self._send(asked, is_stream=True)
        try:
            for line in answer.iter_lines():
                if line == LAST_LINE:
                    return
                if (chunk := chunk_of(line)) is not None:
                    yield chunk
        except httpx.TransportError as error:
            raise broken_off(error) from error
        finally:
            answer.close()
        raise broken_off(None)

    def _send(self, asked: Asked, *, is_stream: bool = False) -> httpx.Response:
        attempts = Attempts(self._retries)
        while True:
            request = self._http.build_request(asked.method, asked.path, json=asked.body, headers=asked.headers)
            try:
                answer = self._http.send(request, stream=is_stream)
                if is_answer(answer, asked):
                    return answer
                answer.read()
                wait_s = attempts.wait_after_answer(answer)
            except httpx.TransportError as error:
                wait_s = attempts.wait_after_failure(error, request.url)
            time.sleep(wait_s)


def key_header(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
