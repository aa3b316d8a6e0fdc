"""A completion while it comes. Which version writes it is known from the first piece on, why it ended at the end."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass

from promptstore.client.answers import WRITER
from promptstore.errors import CorruptError, NotServingError

_EVENT = "data: "
LAST_LINE = f"{_EVENT}[DONE]"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream: a piece of text, which may be empty, and what is said with it. reason: in the last."""

    text: str
    reason: str | None
    task: str
    version: int
    digest: str
    alias: str | None
    is_truncated: bool


class Streamed:
    """What both clients' streams tell beside the text, named as in `Completion`.

    Before the first piece there is only `reason`, which is `None` until all of the text is there.
    """

    def __init__(self) -> None:
        self._last: Chunk | None = None
        self.reason: str | None = None

    @property
    def task(self) -> str:
        return self._told.task

    @property
    def version(self) -> int:
        return self._told.version

    @property
    def digest(self) -> str:
        return self._told.digest

    @property
    def alias(self) -> str | None:
        return self._told.alias

    @property
    def is_truncated(self) -> bool:
        return self._told.is_truncated

    @property
    def _told(self) -> Chunk:
        if self._last is None:
            raise AttributeError("a stream knows its version from the first piece on; ask it after that one")
        return self._last

    def _take(self, chunk: Chunk) -> str:
        self._last, self.reason = chunk, chunk.reason or self.reason
        return chunk.text


class Stream(Streamed, Iterator[str]):
    """Pieces of text, as a `Client` gets them."""

    def __init__(self, chunks: Generator[Chunk]) -> None:
        super().__init__()
        self._chunks = chunks

    def __next__(self) -> str:
        for chunk in self._chunks:
            if text := self._take(chunk):
                return text
        raise StopIteration

    def close(self) -> None:
        """Leaves the rest: the server stops writing."""
        self._chunks.close()


class AsyncStream(Streamed, AsyncIterator[str]):
    """Pieces of text, as an `AsyncClient` gets them."""

    def __init__(self, chunks: AsyncGenerator[Chunk]) -> None:
        super().__init__()
        self._chunks = chunks

    async def __anext__(self) -> str:
        async for chunk in self._chunks:
            if text := self._take(chunk):
                return text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leaves the rest: the server stops writing."""
        await self._chunks.aclose()


def chunk_of(line: str) -> Chunk | None:
    """What one line of a stream holds, `None` if it is no event.

    Raises:
        NotServingError: the server gave up in the middle; the text so far is not the whole answer.
        CorruptError: the line is not what a server sends.
    """
    if not line.startswith(_EVENT):
        return None
    try:
        event = json.loads(line.removeprefix(_EVENT))
        if "error" in event:
            raise NotServingError(f"the answer broke off: {event['error']['message']}")
        choices, about = event["choices"], event["promptstore"]
        text = "".join(choice["text"] for choice in choices)
        reason = next((choice["finish_reason"] for choice in choices), None)
        return Chunk(text, reason, **{name: about[name] for name in WRITER})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"the server's stream holds {line[:80]!r}, which is no piece of a completion") from error


def broken_off(cause: Exception | None) -> NotServingError:
    """A stream that stopped before it said that it was done."""
    return NotServingError(f"the answer broke off: {cause or 'the server closed the connection'}; ask again")
