"""Asks a promptstore server, from code. Needs httpx and nothing of torch."""

from promptstore.client.answers import Classification, Completion, Input, SamplingOptions
from promptstore.client.asynchronous import AsyncClient
from promptstore.client.attempts import Retries
from promptstore.client.blocking import Client

__all__ = ["AsyncClient", "Classification", "Client", "Completion", "Input", "Retries", "SamplingOptions"]
