"""A store that takes connections and never answers: a real server process, a real S3 server, a proxy between them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import free_port
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.serving.arrivals import CLOSE_WITHIN_S
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.fault_proxy import FaultProxy, Hang, behave, fault_proxy
from promptstore.testing.serve_process import ServeProcess, save_model, serve_process
from promptstore.testing.served import ANSWER, SENTIMENT, TOPIC, new_store, publish_random
from promptstore.testing.servers import S3Server
from promptstore.testing.tiny_models import tiny_llama

# What the driver bears of one attempt; a silent store has five.
TIMEOUT_S = 1.0
POLL_S = 0.2
# What one answer may take of a server that waits for nobody, on a busy machine; less than a look at a silent store.
PATIENCE_S = 4.0
# What a busy machine adds.
BUSY_S = 5.0
# What the end waits for requests, a look and pulls, and what a busy machine adds. The drain is longer, and so is an
# attempt that the server at whose end this is looked at makes.
ENDED_WITHIN_S = 4 * CLOSE_WITHIN_S + BUSY_S
LONG_S = 60.0
COLD = (5, 6)
COLD_PATH = "/manifests/"


@dataclass(frozen=True, slots=True)
class Place:
    """A store on a real S3 server, written to directly, and a server that follows it through a proxy.

    serve: another such server, until the block ends, with an attempt of so many seconds and options."""

    store: PromptStore
    model: FrozenModel
    proxy: FaultProxy
    server: ServeProcess
    serve: Callable[..., AbstractContextManager[ServeProcess]]


@pytest.fixture(scope="module")
def place(seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hanging")
    model = save_model(tiny_llama(), folder)
    prefix = f"hanging/{uuid4().hex}"
    store = new_store(S3ObjectStore(seaweedfs.bucket, prefix, S3Options(endpoint=seaweedfs.endpoint)))
    for seed, task in enumerate((SENTIMENT, TOPIC, ANSWER)):
        publish_random(store, model, task, seed=seed)
    for seed in COLD:  # nothing asks for these before the tests do
        publish_random(store, model, TOPIC, seed=seed, alias=None)
    url = f"s3://{seaweedfs.bucket}/{prefix}"
    with fault_proxy(seaweedfs.endpoint) as proxy:

        @contextmanager
        def serve(timeout_s: float, *asked: str) -> Iterator[ServeProcess]:
            environment = {"PROMPTSTORE_S3_ENDPOINT": proxy.endpoint, "PROMPTSTORE_S3_TIMEOUT_S": str(timeout_s)}
            asked = ("--poll", str(POLL_S), "--staleness", "1", *asked)
            with serve_process(folder, url, *asked, port=free_port(), environment=environment) as server:
                server.wait_until_ready()
                server.client.timeout = PATIENCE_S
                yield server

        with serve(TIMEOUT_S) as server:
            yield Place(store, model, proxy, server, serve)


def ask(server: ServeProcess) -> str:
    """Which versions answer a question to all tasks. Fails unless all do, at once."""
    body = {"model": ["sentiment", "topic"], "input": ["a great film", "taxes before the election"]}
    answers = [
        server.client.post("/v1/classify", json=body),
        server.client.post("/v1/completions", json={"model": "answer", "prompt": "who ?", "max_tokens": 3}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    return ", ".join(answer.headers["x-promptstore-version"] for answer in answers)


def ask_patiently(server: ServeProcess, path: str, body: object) -> httpx.Response:
    return server.client.post(path, json=body, timeout=60)


def ask_until(server: ServeProcess, expected: str, is_time: Callable[[], bool]) -> None:
    """Asks over and over until it is time; the versions that answer are the `expected` ones."""
    deadline = time.monotonic() + 30
    while not is_time():
        assert time.monotonic() < deadline
        assert ask(server) == expected
        ready = server.ready()
        assert ready.status_code == 200
        told = ready.json()
        assert (told["status"] == "ready") == (told["store"]["problem"] is None and not told["store"]["is_stale"])


@contextmanager
def hanging(proxy: FaultProxy) -> Iterator[None]:
    """The store hangs, and a look at it with it, until the block ends."""
    before = proxy.faults
    proxy.script = lambda _: Hang()
    wait_until(lambda: proxy.faults > before)
    try:
        yield
    finally:
        proxy.script = behave


def wait_until(is_true: Callable[[], bool], *, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_hangs_harms_no_prompt_that_is_served_and_is_followed_again_once_it_answers(place: Place) -> None:
    known, news = "sentiment:1, topic:1, answer:1", "sentiment:2, topic:1, answer:1"
    server = place.server
    assert ask(server) == known
    with hanging(place.proxy), ThreadPoolExecutor(1) as pool:
        staleness_s = [server.gauge("promptstore_store_staleness_seconds")]
        cold = pool.submit(ask_patiently, server, "/v1/classify", {"model": "topic:2", "input": "x"})
        publish_random(place.store, place.model, SENTIMENT, seed=7)
        ask_until(server, known, lambda: bool(server.ready().json()["store"]["is_stale"]))
        staleness_s.append(server.gauge("promptstore_store_staleness_seconds"))
        ask_until(server, known, lambda: server.ready().json()["store"]["problem"] is not None)
        staleness_s.append(server.gauge("promptstore_store_staleness_seconds"))
        told = server.ready().json()
        assert told["status"] == "ready, serving what was last known"
        assert "did not answer within 1 s" in told["store"]["problem"]
        assert 0.0 <= staleness_s[0] < staleness_s[1] < staleness_s[2]
        assert server.gauge("promptstore_store_is_stale") == 1.0
        ask_until(server, known, cold.done)
        assert (cold.result().status_code, cold.result().json()["error"]["code"]) == (503, "store_unavailable")
    # The attempt under way ends in silence, and the one after it is answered.
    wait_until(lambda: ask(server) == news, within_s=POLL_S + TIMEOUT_S + BUSY_S)
    ask_until(server, news, lambda: bool(server.ready().json()["status"] == "ready"))
    assert server.gauge("promptstore_store_staleness_seconds") < staleness_s[-1]


def test_sigterm_while_looks_and_pulls_hang_ends_the_server_in_time(place: Place) -> None:
    with place.serve(LONG_S, "--drain", str(LONG_S)) as server, hanging(place.proxy), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask_patiently, server, "/admin/refresh", {}) for _ in range(3)]
        before = sum(COLD_PATH in request.path for request in place.proxy.requests)
        asked.append(pool.submit(ask_patiently, server, "/v1/classify", {"model": "topic:3", "input": "x"}))
        wait_until(lambda: sum(COLD_PATH in request.path for request in place.proxy.requests) > before)
        ask(server)
        started = time.monotonic()
        assert server.end(within_s=ENDED_WITHIN_S) == 0, server.log.read_text()
        print(f"ended within {time.monotonic() - started:.1f} s")
        told = [each.result() for each in asked]
        assert [(each.status_code, each.json()["error"]["code"]) for each in told] == [(503, "not_serving")] * 4
