"""Asks a promptstore server, from code. Needs httpx and nothing of torch."""

from promptstore.client.answers import Classification, Completion, Input, SamplingOptions
from promptstore.client.asynchronous import AsyncClient
from promptstore.client.attempts import Retries
from promptstore.client.blocking import Client
from promptstore.client.streams import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Classification",
    "Client",
    "Completion",
    "Input",
    "Retries",
    "SamplingOptions",
    "Stream",
]
