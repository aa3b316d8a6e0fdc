"""A real server process: with the bounds it was given, under load, told to stop."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from promptstore.loopback import free_port
from promptstore.objects.local import LocalObjectStore
from promptstore.testing.serve_process import ServeProcess, save_model, serve_process
from promptstore.testing.served import ANSWER, SENTIMENT, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.vllm.fake import Faults, VllmFake

ASK = {"model": "sentiment", "input": "a great film"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a store that was filled by another process: this one."""
    folder = tmp_path_factory.mktemp("served")
    model = save_model(tiny_llama(), folder)
    store = new_store(LocalObjectStore(folder / "store"))
    publish_random(store, model, SENTIMENT, seed=1)
    publish_random(store, model, ANSWER, seed=2)
    return folder


@contextmanager
def _server(place: Path, *arguments: str, port: int | None = None) -> Iterator[ServeProcess]:
    with serve_process(place, str(place / "store"), *arguments, port=port or free_port()) as server:
        server.wait_until_ready()
        yield server


class _Load:
    """Clients that ask over and over; what they got, by kind of outcome."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.clients = 4
        self._url = url
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def wait_until_answered(self) -> None:
        deadline = time.monotonic() + 60
        while not self.outcomes["200"] and time.monotonic() < deadline:
            time.sleep(0.05)

    def join(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        # A connection per request, as a load balancer's health checks would see it: refused means gone, not broken.
        while not self.stopped.is_set():
            try:
                answer = httpx.post(f"{self._url}/v1/classify", json=ASK, timeout=20)
                self.outcomes[str(answer.status_code)] += 1
            except httpx.ConnectError:
                self.outcomes["refused"] += 1
                time.sleep(0.01)
            except httpx.HTTPError as error:
                self.outcomes["reset" if self._is_gone() else type(error).__name__] += 1

    def _is_gone(self) -> bool:
        """Nobody listens any more: a connection that the kernel held, not yet accepted, is reset in that moment."""
        try:
            httpx.get(f"{self._url}/healthz", timeout=2)
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:
            return False
        return False


def test_sigterm_answers_everything_that_was_accepted(place: Path) -> None:
    with _server(place, "--drain-delay", "3") as server:
        load = _Load(server.url)
        with httpx.Client(base_url=server.url, timeout=30) as client:
            body = {"model": "answer", "prompt": "who ?", "max_tokens": 300, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
                assert server.ready().status_code == 503
                assert "data: [DONE]" in list(lines)
        assert server.process.wait(timeout=30) == 0
        load.join()
    print(dict(load.outcomes))
    assert load.outcomes.keys() - {"reset"} == {"200", "refused"}
    assert load.outcomes["reset"] <= load.clients, "more than one moment"
    assert load.outcomes["200"] > 10


def test_a_server_that_was_killed_starts_again_and_answers(place: Path) -> None:
    port = free_port()
    with _server(place, port=port) as server:
        load = _Load(server.url)
        load.wait_until_answered()
        server.process.kill()
        server.process.wait()
        load.join()
    assert load.outcomes["200"] > 0
    with _server(place, port=port) as server:
        answer = server.client.post("/v1/classify", json=ASK)
        assert answer.headers["x-promptstore-version"] == "sentiment:1"


def test_a_port_that_is_taken_is_one_clear_message_and_no_wait(place: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve_process(place, str(place / "store"), port=port) as server:
            assert server.process.wait(timeout=60) == 1
        said = server.log.read_text()
    assert "choose another --port" in said
    assert "Traceback" not in said


def test_bounds_hold_in_front_of_vllm_as_well(place: Path) -> None:
    fake = VllmFake(tiny_llama(), root=str(place / "model"))
    fake.start()
    bounds = ("--max-queued", "2", "--vllm-timeout", "0.3")
    with _server(place, "--engine", "vllm", "--vllm-url", fake.url, *bounds) as server:
        fake.faults = Faults(silence_s=2.0)
        for inputs, status, says in ((["x"] * 3, 429, "at most 2 may"), (["x"], 503, "did not answer in time")):
            answer = server.client.post("/v1/classify", json={**ASK, "input": inputs})
            assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True)
    fake.stop()
