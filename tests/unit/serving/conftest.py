"""One tiny model and one server for all tests that change neither."""

from collections.abc import Iterator

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.served import LiveServer, live_server, store_of
from promptstore.testing.tiny_models import tiny_llama


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    return tiny_llama()


@pytest.fixture(scope="session")
def server(model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store_of(model), model) as live:
        yield live


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found
