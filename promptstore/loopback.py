"""Servers of this machine: a port for one, and asking it again and again until it answers."""

import random
import socket
import ssl
from contextlib import suppress

import httpx

# Below what systems give to outgoing connections (Linux from 32768, others from 49152).
PORTS = range(20_000, 32_000)


def loopback_client(timeout_s: float) -> httpx.Client:
    """A client for `http://127.0.0.1…` alone: past every proxy, and TLS fails.

    httpx reads all certificate authorities for each client, asked for https or not: 50 ms of a core, which a wait that
    asks five times a second spends on nothing else.
    """
    return httpx.Client(timeout=timeout_s, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens now, and which no outgoing connection is given meanwhile.

    A server may import for seconds before it binds, and one of the ports that the system chooses from may be a client's
    by then.

    Raises:
        OSError: none of a hundred drawn ones is free.
    """
    # Apart from the seeds of whoever asks, so that processes with one seed do not draw one port.
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"none of a hundred ports of {PORTS.start} to {PORTS.stop - 1} is free")
