"""A server process that is killed while its S3 server is cut off, and started again before that is back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import free_port
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.last_known import LastKnown
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.fault_proxy import FaultProxy, Refuse, behave, fault_proxy
from promptstore.testing.serve_process import ServeProcess, save_model, serve_process
from promptstore.testing.served import SENTIMENT, TOPIC, new_store, publish_random
from promptstore.testing.servers import S3Server
from promptstore.testing.tiny_models import tiny_llama


@dataclass(frozen=True, slots=True)
class Place:
    """A store on a real S3 server, written to directly and followed through a proxy. url: of the store."""

    folder: Path
    store: PromptStore
    model: FrozenModel
    proxy: FaultProxy
    url: str

    @contextmanager
    def server(self) -> Iterator[ServeProcess]:
        environment = {"PROMPTSTORE_S3_ENDPOINT": self.proxy.endpoint, "PROMPTSTORE_S3_TIMEOUT_S": "1"}
        asked = ("--poll", "0.1")
        with serve_process(self.folder, self.url, *asked, port=free_port(), environment=environment) as server:
            yield server

    def cut(self) -> None:
        """From now on connections end without an answer."""
        self.proxy.script = lambda _: Refuse(0)


@pytest.fixture
def place(seaweedfs: S3Server, tmp_path: Path) -> Iterator[Place]:
    model = save_model(tiny_llama(), tmp_path)
    prefix = f"away/{uuid4().hex}"
    store = new_store(S3ObjectStore(seaweedfs.bucket, prefix, S3Options(endpoint=seaweedfs.endpoint)))
    with fault_proxy(seaweedfs.endpoint) as proxy:
        yield Place(tmp_path, store, model, proxy, f"s3://{seaweedfs.bucket}/{prefix}")


def version(server: ServeProcess, task: str) -> str:
    answer = server.client.post("/v1/classify", json={"model": task, "input": "a great film"})
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-promptstore-version"])


def kept_commit(place: Place) -> int:
    """The commit that a server of `place` would start with while its store is away."""
    found = LastKnown(place.folder / "state" / "last-known", [place.url, place.proxy.endpoint, ""]).load()
    return 0 if found is None else found.state.number


def wait_until(is_so: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_killed_while_its_store_is_away_starts_again_and_answers(place: Place) -> None:
    publish_random(place.store, place.model, SENTIMENT, seed=1)
    publish_random(place.store, place.model, TOPIC, seed=2)
    with place.server() as server:
        server.wait_until_ready()
        publish_random(place.store, place.model, SENTIMENT, seed=3)
        wait_until(lambda: version(server, "sentiment") == "sentiment:2")
        place.cut()
        wait_until(lambda: server.ready().json()["store"]["problem"] is not None)
        # What came just before the store went away is kept as well, at one of the looks that fail.
        wait_until(lambda: kept_commit(place) == place.store.state.number, within_s=60.0)
        server.process.kill()
        server.process.wait()
    publish_random(place.store, place.model, TOPIC, seed=4)
    with place.server() as server:
        server.wait_until_ready()
        assert [version(server, task) for task in ("sentiment", "topic")] == ["sentiment:2", "topic:1"]
        told = server.ready().json()
        assert told["status"] == "ready, serving what was last known"
        assert told["store"]["staleness_s"] > 1.0
        assert told["refused"] == []
        assert "starting with commit" in server.log.read_text()
        place.proxy.script = behave
        wait_until(lambda: version(server, "topic") == "topic:2")
        assert server.ready().json()["status"] == "ready"
        assert server.end(within_s=30.0) == 0


def test_a_server_that_never_saw_its_store_says_that_it_cannot_be_reached(place: Place) -> None:
    publish_random(place.store, place.model, SENTIMENT, seed=1)
    place.cut()
    with place.server() as server:
        assert server.process.wait(timeout=60) == 1
        said = server.log.read_text()
    assert "Traceback" not in said
    assert place.url in said
