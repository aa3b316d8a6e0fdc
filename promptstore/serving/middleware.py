"""Around every request: an id, bounds on its body, a log line, metrics. Plain ASGI, so that streams stay streams."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptstore.errors import OverloadedError
from promptstore.serving.bodies import VERSION_HEADER
from promptstore.serving.failures import RequestRefusedError, describe, error_response
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.tracing import NoTracer, Tracer

access_log = logging.getLogger("promptstore.access")
REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# nginx's status for a client that closed its request; nobody is sent it, logs and metrics have it.
CLIENT_LEFT = 499
_UNKNOWN_ROUTE = "unknown"
# Routes whose requests wait for the engine.
QUEUED_ROUTES = frozenset({"/v1/classify", "/v1/completions", "/v1/chat/completions"})
# Ids of the request that a coroutine works for: every log line of it carries them.
_ids: ContextVar[dict[str, str] | None] = ContextVar("ids", default=None)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """receive_s: for a request's headers, and then for its body, so that a slow client holds nothing for long; and for
    a client to take what was written for it.

    connections: at one time; further ones are closed at once.
    """

    body_bytes: int = 1 << 20
    receive_s: float = 30.0
    connections: int = 1000


@dataclass(slots=True)
class _Answered:
    status: int = 0
    version: str = ""


@dataclass(slots=True)
class RequestMiddleware:
    """Reads the body whole before the app sees it: an oversized or unfinished one costs no work.

    shed: raises what a request for the engine is told now, if none would be taken, by its `authorization`. Asked before
    anything is read, so that a flood of refusals leaves the time to those that wait.
    """

    app: ASGIApp
    metrics: ServerMetrics
    limits: BodyLimits = field(default_factory=BodyLimits)
    tracer: Tracer = field(default_factory=NoTracer)
    shed: Callable[[str | None], None] = lambda _: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get(REQUEST_ID_HEADER, "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else secrets.token_hex(8)
        scope["state"]["request_id"] = request_id
        answered, started = _Answered(), time.monotonic()
        watched = _watch(send, request_id, answered)
        with self.tracer.span(scope["method"], headers) as span:
            ids = {"request_id": request_id, "trace_id": span.trace_id}
            token = _ids.set({name: value for name, value in ids.items() if value})
            try:
                await self._answer(scope, receive, watched, answered)
            finally:
                span.set("request_id", request_id)
                span.set("status", answered.status)
                span.set("version", answered.version)
                span.rename(f"{scope['method']} {_route(scope)}")
                self._record(scope, answered, time.monotonic() - started)
                _ids.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answered: _Answered) -> None:
        headers = Headers(scope=scope)
        try:
            if scope["path"] in QUEUED_ROUTES and scope["method"] == "POST":
                self.shed(headers.get("authorization"))
            body = await self._body(headers, receive)
            await self._work(scope, _replay(body, receive), receive, send, answered)
        except (RequestRefusedError, OverloadedError) as refused:
            status, told = describe(refused)
            self.metrics.refused.labels(told["error"]["code"]).inc()
            await error_response(status, told)(scope, receive, send)
        except Exception as error:
            if answered.status:
                raise
            await error_response(*describe(error))(scope, receive, send)

    async def _work(self, scope: Scope, replayed: Receive, receive: Receive, send: Send, answered: _Answered) -> None:
        """Runs the app; ends it if the client leaves before the answer has begun. A stream notices by itself."""
        work = asyncio.ensure_future(self.app(scope, replayed, send))
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or answered.status:
                await work
            else:
                answered.status = CLIENT_LEFT
        finally:
            leaving.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        bound = self.limits.body_bytes
        too_large = RequestRefusedError(413, "body_too_large", f"the body is larger than {bound} bytes")
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > bound:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.limits.receive_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestRefusedError(400, "disconnected", "the client left before its body was complete")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > bound:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestRefusedError(408, "body_timeout", "the body took too long to arrive") from None

    def _record(self, scope: Scope, answered: _Answered, seconds: float) -> None:
        route = _route(scope)
        self.metrics.requests.labels(route, str(answered.status)).inc()
        self.metrics.http_seconds.labels(route).observe(seconds)
        access_log.info(
            "request",
            extra={
                "fields": {
                    **(_ids.get() or {}),
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": answered.status,
                    "seconds": round(seconds, 4),
                    "version": answered.version or None,
                    "key": scope["state"].get("key_name"),
                    "client": (scope.get("client") or ("",))[0],
                }
            },
        )


def _route(scope: Scope) -> str:
    """Also of a request that was turned away before it came to its route."""
    early = scope["path"] if scope["path"] in QUEUED_ROUTES else _UNKNOWN_ROUTE
    return str(getattr(scope.get("route"), "path", early))


def _watch(send: Send, request_id: str, answered: _Answered) -> Send:
    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = request_id
            answered.version = headers.get(VERSION_HEADER, "")
        await send(message)

    return watched


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the app the body that was read, then whatever comes next: the client's leaving."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


class JsonFormatter(logging.Formatter):
    """One JSON object per line, in UTC, with the ids of the request that it is about."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **(_ids.get() or {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
