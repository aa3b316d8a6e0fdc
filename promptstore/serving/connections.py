"""Connections are bounded in number, in how long they may send or take nothing, and in what may stand before a body:
uvicorn bounds none of that."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from promptstore.serving.failures import error_body, error_response

_Protocol: Any = asyncio.Protocol
# As many as nginx and Node.js take, and more. What comes in one piece from the socket is not held against it.
_HEADER_BYTES = 64 << 10
_TOO_LARGE = error_body(431, "headers_too_large", f"a request's headers may have {_HEADER_BYTES >> 10} KiB")


class _Patient(_Protocol):  # type: ignore[misc]
    """Before one of uvicorn's protocols. That over httptools tells what it finds, and would keep headers without end;
    that over h11 tells nothing, and bounds them itself."""

    patience_s: float
    most: int
    tells: bool
    _header_bytes = 0
    _has_come_on = False
    _is_within_headers = False
    _closing: asyncio.TimerHandle | None = None
    _aborting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._watch()

    def pause_writing(self) -> None:
        """The client reads slower than the answer is written."""
        super().pause_writing()
        self._aborting = self.loop.call_later(self.patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._go_on()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Counts what has neither completed headers nor added to a body: also what comes behind a request that is not
        answered yet, and behind a body."""
        self._has_come_on = not self.tells
        super().data_received(data)
        self._header_bytes = 0 if self._has_come_on else self._header_bytes + len(data)
        if self._header_bytes > _HEADER_BYTES:
            self._refuse()
        self._watch()

    def on_message_begin(self) -> None:
        self._is_within_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_within_headers = False
        self._has_come_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_come_on = True
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._go_on()
        super().connection_lost(exc)

    @property
    def _is_awaiting_request(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _refuse(self) -> None:
        """Tells why, unless that would be taken for the answer to an earlier request."""
        if self.transport.is_closing():
            return
        if self._is_awaiting_request:
            answer = error_response(431, _TOO_LARGE)
            headers = b"".join(b"%s: %s\r\n" % each for each in answer.raw_headers)
            line = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
            self.transport.write(line + headers + b"connection: close\r\n\r\n" + bytes(answer.body))
        self.transport.close()

    def _watch(self) -> None:
        """Runs the clock while a request is awaited; one kept alive without a further byte is uvicorn's matter."""
        if not (self._is_awaiting_request or self._is_within_headers):
            self._stop()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.patience_s, self._give_up)

    def _give_up(self) -> None:
        self._closing = None
        if self._is_awaiting_request or self._is_within_headers:
            self.transport.close()

    def _stop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _go_on(self) -> None:
        if self._aborting is not None:
            self._aborting.cancel()
            self._aborting = None


def patient_protocol(
    patience_s: float, *, most: int = 1000, over: type[asyncio.Protocol] = AutoHTTPProtocol
) -> type[asyncio.Protocol]:
    """uvicorn's protocol, with its connections bounded.

    patience_s: how long a request's headers may take to arrive, and a client to take what was written for it.
    most: connections at one time; further ones are closed at once.
    over: which of its protocols; by default the one for what is installed.
    """
    told = {"patience_s": patience_s, "most": most, "tells": hasattr(over, "on_headers_complete")}
    return type("PatientProtocol", (_Patient, over), told)
