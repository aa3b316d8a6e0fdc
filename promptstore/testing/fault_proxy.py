"""An HTTP proxy that misbehaves on request between a client, of S3 above all, and a real server.

It forwards requests byte for byte, `Host` included, so signatures stay valid.
"""

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ProxiedRequest:
    """A request on its way. number: from 0, in order of arrival; is_create: it carries `If-None-Match`."""

    number: int
    method: str
    path: str
    is_create: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer `status` in the server's stead; the server never sees the request. status 0: close without an answer."""

    status: int
    code: str = "InjectedFault"


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Let the request take effect, then answer `status` instead; 0: close without an answer."""

    status: int = 0
    code: str = "InternalError"


@dataclass(frozen=True, slots=True)
class ArriveLate:
    """Close without an answer; the request takes effect `seconds` later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Slow:
    """Answer truly, but only after `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Take the request and never answer, until the client leaves; the server never sees it."""


@dataclass(frozen=True, slots=True)
class FallSilent:
    """Send half of the answer's body and no more, until the client leaves."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Break the answer's body off halfway."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Flip one bit in the middle of the answer's body."""


HttpFault = Refuse | LoseAnswer | ArriveLate | Slow | Hang | FallSilent | Truncate | Corrupt
Script = Callable[[ProxiedRequest], HttpFault | None]


Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said; `headers` holds the Content-Length it promised."""

    status: int
    headers: Headers
    body: bytes


class FaultProxy:
    """Stands before the server at `upstream`; `script` says what goes wrong. Lists `requests`, counts `faults`."""

    def __init__(self, upstream: str) -> None:
        self.script: Script = behave
        self.requests: list[ProxiedRequest] = []
        self.faults = 0
        self._upstream = urlsplit(upstream).netloc
        self._lock = Lock()
        self._late: list[Thread] = []
        self._server = _Server(self)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for_late_arrivals(self) -> None:
        """Block until every request of `ArriveLate` has arrived."""
        while self._late:
            self._late.pop().join()

    def serve(self) -> None:
        """Block until `close`."""
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.wait_for_late_arrivals()
        self._server.shutdown()
        self._server.server_close()

    def begin(self, method: str, path: str, *, is_create: bool) -> HttpFault | None:
        """Take note of a request; what shall befall it."""
        with self._lock:
            request = ProxiedRequest(len(self.requests), method, path, is_create)
            self.requests.append(request)
            fault = self.script(request)
            self.faults += fault is not None
            return fault

    def answer(self, fault: HttpFault | None, method: str, path: str, body: bytes, headers: Headers) -> Answer | None:
        """What the client shall get; `None`: nothing, the connection closes."""
        match fault:
            case Refuse(status, code):
                return _refusal(status, code)
            case ArriveLate(seconds):
                self._late.append(Thread(target=self._forward_late, args=(seconds, method, path, body, headers)))
                self._late[-1].start()
                return None
            case _:
                return _spoil(fault, self._forward(method, path, body, headers))

    def _forward_late(self, seconds: float, method: str, path: str, body: bytes, headers: Headers) -> None:
        time.sleep(seconds)
        self._forward(method, path, body, headers)

    def _forward(self, method: str, path: str, body: bytes, headers: Headers) -> Answer:
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        own = {"content-length", "transfer-encoding", "connection"}
        kept = {name: value for name, value in response.getheaders() if name.lower() not in own}
        length = response.getheader("Content-Length", "0") if method == "HEAD" else str(len(data))
        return Answer(response.status, kept | {"Content-Length": length}, data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):  # the client gave up
            self.close_connection = True

    def _proxied(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server.proxy
        fault = proxy.begin(self.command, self.path, is_create="If-None-Match" in self.headers)
        if isinstance(fault, Hang):
            self._wait_until_client_leaves()
            return
        answer = proxy.answer(fault, self.command, self.path, body, dict(self.headers))
        if answer is None:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
            if isinstance(fault, FallSilent):
                self._wait_until_client_leaves()
            if int(answer.headers["Content-Length"]) > len(answer.body):
                self.close_connection = True

    def _wait_until_client_leaves(self) -> None:
        self.close_connection = True
        self.rfile.read(1)  # whoever waits for an answer sends nothing more

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = do_PATCH = _proxied  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A running proxy before `upstream`, without faults until its `script` is set."""
    proxy = FaultProxy(upstream)
    thread = Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()


def behave(request: ProxiedRequest) -> HttpFault | None:
    """The script without faults."""
    _ = request
    return None


def once(fault: HttpFault, when: Callable[[ProxiedRequest], bool]) -> Script:
    """The script in which `fault` befalls the first request for which `when` holds, and no other."""
    left = [fault]

    def script(request: ProxiedRequest) -> HttpFault | None:
        return left.pop() if left and when(request) else None

    return script


def _spoil(fault: HttpFault | None, answer: Answer) -> Answer | None:
    match fault:
        case LoseAnswer(status, code):
            return _refusal(status, code)
        case Slow(seconds):
            time.sleep(seconds)
            return answer
        case Truncate() | FallSilent():
            return Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2])
        case Corrupt():
            middle = len(answer.body) // 2
            flipped = bytes([answer.body[middle] ^ 1]) if answer.body else b""
            return Answer(answer.status, answer.headers, answer.body[:middle] + flipped + answer.body[middle + 1 :])
        case _:
            return answer


def _refusal(status: int, code: str) -> Answer | None:
    if status == 0:
        return None
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected by a test</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)
