"""Asking servers of this machine, again and again until they answer."""

import ssl

import httpx


def loopback_client(timeout_s: float) -> httpx.Client:
    """A client for `http://127.0.0.1…` alone: past every proxy, and TLS fails.

    httpx reads all certificate authorities for each client, asked for https or not: 50 ms of a core, which a wait that
    asks five times a second spends on nothing else.
    """
    return httpx.Client(timeout=timeout_s, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
