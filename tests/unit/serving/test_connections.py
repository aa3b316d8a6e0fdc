"""What may come behind a request that is not answered yet, by either of uvicorn's parsers."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from promptstore.serving.connections import patient_protocol
from promptstore.testing.listening import listening

FIRST = b"GET /kept HTTP/1.1\r\nhost: x\r\n\r\n"
SECOND = b"GET /next HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"POST /kept HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
FILLER = b"a" * 1000
LINE = b"x-n: " + FILLER + b"\r\n"
# Many times what the bound allows and what sockets hold.
ENDLESS_BYTES = 40_000_000


class App:
    """Reads bodies whole, and answers `/kept` once it may, or its client has left."""

    def __init__(self) -> None:
        self.begun, self.may_answer, self.left = Event(), Event(), Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        leaving = asyncio.ensure_future(self._read(receive))
        if scope["path"] == "/kept":
            answering = asyncio.ensure_future(asyncio.to_thread(self.may_answer.wait, 60))
            await asyncio.wait({leaving, answering}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def _read(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol])
def parser(request: pytest.FixtureRequest) -> type[asyncio.Protocol]:
    found: type[asyncio.Protocol] = request.param
    return found


@contextmanager
def connected(app: App, parser: type[asyncio.Protocol], *, patience_s: float = 30.0) -> Iterator[socket.socket]:
    with listening(app, http=patient_protocol(patience_s, over=parser)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            try:
                yield connection
            finally:
                app.may_answer.set()


def taken(connection: socket.socket, part: bytes) -> int:
    """Bytes, of `part` over and over, until the server closes or reads no more."""
    sent = 0
    connection.settimeout(2)
    with suppress(ConnectionError, TimeoutError):
        while sent < ENDLESS_BYTES:
            connection.sendall(part)
            sent += len(part)
    return sent


def received(connection: socket.socket, answers: int) -> bytes:
    """What comes until there are so many answers, or the server closes."""
    text = b""
    while text.count(b"\r\n\r\n") < answers and (part := connection.recv(65536)):
        text += part
    return text


@pytest.mark.parametrize(
    ("start", "part"),
    [(FIRST + SECOND, LINE), (FIRST + SECOND + b"x-n: ", FILLER), (CHUNKED + b"1\r\nx\r\n0\r\n", LINE)],
    ids=["many headers", "one header", "headers behind a body"],
)
def test_headers_without_end_behind_a_request_that_is_not_answered_are_not_taken(
    parser: type[asyncio.Protocol], start: bytes, part: bytes
) -> None:
    app = App()
    with connected(app, parser) as connection:
        connection.sendall(start)
        assert app.begun.wait(20)
        assert taken(connection, part) < ENDLESS_BYTES
        assert parser is H11Protocol or app.left.wait(20)  # which reads on once it has answered


def test_headers_that_come_too_slowly_behind_a_request_that_is_not_answered_close_the_connection() -> None:
    app = App()
    with connected(app, HttpToolsProtocol, patience_s=0.3) as connection:
        connection.sendall(FIRST + SECOND)
        assert connection.recv(100) == b""


def test_a_request_behind_one_that_is_not_answered_is_answered_next(parser: type[asyncio.Protocol]) -> None:
    app = App()
    with connected(app, parser, patience_s=0.3) as connection:
        connection.sendall(FIRST + SECOND)
        assert app.begun.wait(20)
        connection.sendall(40 * LINE + b"\r\n")
        assert not app.left.wait(1.0)
        app.may_answer.set()
        assert received(connection, 2).count(b"HTTP/1.1 200") == 2


def test_a_body_in_many_small_pieces_is_no_header(parser: type[asyncio.Protocol]) -> None:
    app = App()
    with connected(app, parser) as connection:
        connection.sendall(CHUNKED + 50_000 * b"1\r\nx\r\n" + b"0\r\n\r\n" + SECOND + 40 * LINE + b"\r\n")
        app.may_answer.set()
        assert received(connection, 2).count(b"HTTP/1.1 200") == 2
