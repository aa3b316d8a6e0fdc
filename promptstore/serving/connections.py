"""Connections that do not send a request in time are closed: uvicorn bounds neither silence nor slow headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol


class _PatientProtocol(_Protocol):  # type: ignore[misc]
    headers_within_s = 30.0
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    @property
    def _is_awaiting_request(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _watch(self) -> None:
        """Runs the clock while a request is awaited; one kept alive without a further byte is uvicorn's matter."""
        if not self._is_awaiting_request:
            self._stop()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.headers_within_s, self._give_up)

    def _give_up(self) -> None:
        self._closing = None
        if self._is_awaiting_request:
            self.transport.close()

    def _stop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


def patient_protocol(headers_within_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes a connection whose headers take longer than this to arrive."""
    return type("PatientProtocol", (_PatientProtocol,), {"headers_within_s": headers_within_s})
