"""A receiver of webhooks on the loopback interface that fails as it is told, and keeps everything it got."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

# `lose`: take it, and close the connection before an answer. A number: answer so (429: in 7 s). `None`: take it.
Fault = Literal["lose"] | int | None


@dataclass(frozen=True, slots=True)
class Received:
    """One request. answer: what was said to it; 0 if nothing was."""

    headers: dict[str, str]
    body: bytes
    answer: int

    @property
    def is_taken(self) -> bool:
        return self.answer // 100 == 2


@dataclass(slots=True)
class Receiver:
    """fault: asked for each request by its number, from 0."""

    url: str
    fault: Callable[[int], Fault] = lambda _: None
    received: list[Received] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, timeout_s: float = 60.0) -> list[Received]:
        """Everything so far, once there are `count` requests."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.received) >= count, timeout_s), (
                f"{len(self.received)} of {count} requests came within {timeout_s:g} s"
            )
            return list(self.received)

    def answer(self, headers: dict[str, str], body: bytes) -> Fault:
        with self.changed:
            fault = self.fault(len(self.received))
            answer = 0 if fault == "lose" else fault or 204
            self.received.append(Received(headers, body, answer))
            self.changed.notify_all()
        return fault


@contextmanager
def receiver(fault: Callable[[int], Fault] = lambda _: None) -> Iterator[Receiver]:
    """A receiver that listens until the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            said = found.answer({name.lower(): value for name, value in self.headers.items()}, body)
            if said == "lose":
                self.close_connection = True
                return
            self.send_response(said or 204)
            if said == 429:
                self.send_header("retry-after", "7")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the standard library's
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}/hook", fault)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
