"""Ports of this machine."""

import socket

import pytest

from promptstore import loopback
from promptstore.loopback import PORTS, free_port


def test_a_port_is_free_and_below_those_of_outgoing_connections() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] in PORTS


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(loopback, "PORTS", range(port, port + 100))
    with socket.create_server(("127.0.0.1", port)):
        assert all(free_port() != port for _ in range(20))
