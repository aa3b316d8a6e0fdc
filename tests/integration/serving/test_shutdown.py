"""A real server process: with the bounds it was given, under load, told to stop."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from promptstore.loopback import loopback_client
from promptstore.objects.local import LocalObjectStore
from promptstore.testing.served import ANSWER, SENTIMENT, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.vllm.fake import Faults, VllmFake

ASK = {"model": "sentiment", "input": "a great film"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and a store that was filled by another process: this one."""
    from promptstore.lm.source import open_model

    folder = tmp_path_factory.mktemp("served")
    tiny = tiny_llama()
    tiny.network.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    model = open_model(str(folder / "model"), cache_dir=folder / "cache", device="cpu", dtype="float32")
    store = new_store(LocalObjectStore(folder / "store"))
    publish_random(store, model, SENTIMENT, seed=1)
    publish_random(store, model, ANSWER, seed=2)
    return folder


@contextmanager
def _server(place: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PROMPTSTORE_STATE_DIR": str(place / "state"),
        "PROMPTSTORE_CACHE_DIR": str(place / "cache"),
        "PROMPTSTORE_DEVICE": "cpu",
        "PROMPTSTORE_DTYPE": "float32",
    }
    asked = ("-m", "promptstore", "serve", "--store", str(place / "store"), "--model", str(place / "model"))
    command = [sys.executable, *asked, "--port", str(port), *arguments]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    with loopback_client(2.0) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            try:
                if client.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
    raise AssertionError("the server did not get ready")


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class _Load:
    """Clients that ask over and over; what they got, by kind of outcome."""

    def __init__(self, port: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stopped = threading.Event()
        self.clients = 4
        self._url = f"http://127.0.0.1:{port}"
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
    port = _free_port()
    with _server(place, port, "--drain-delay", "3") as process:
        _wait_until_ready(port, process)
        load = _Load(port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            body = {"model": "answer", "prompt": "who ?", "max_tokens": 300, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
                assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
                assert "data: [DONE]" in list(lines)
        assert process.wait(timeout=30) == 0
        load.join()
    print(dict(load.outcomes))
    assert load.outcomes.keys() - {"reset"} == {"200", "refused"}
    assert load.outcomes["reset"] <= load.clients, "more than one moment"
    assert load.outcomes["200"] > 10


def test_a_server_that_was_killed_starts_again_and_answers(place: Path) -> None:
    port = _free_port()
    with _server(place, port) as process:
        _wait_until_ready(port, process)
        load = _Load(port)
        load.wait_until_answered()
        process.kill()
        process.wait()
        load.join()
    assert load.outcomes["200"] > 0
    with _server(place, port) as process:
        _wait_until_ready(port, process)
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=ASK)
        assert answer.headers["x-promptstore-version"] == "sentiment:1"


def test_a_port_that_is_taken_is_one_clear_message_and_no_wait(place: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, _server(place, taken.getsockname()[1]) as process:
        assert process.wait(timeout=60) == 1
        assert process.stderr is not None
        said = process.stderr.read()
    assert "choose another --port" in said
    assert "Traceback" not in said


def test_bounds_hold_in_front_of_vllm_as_well(place: Path) -> None:
    port, fake = _free_port(), VllmFake(tiny_llama(), root=str(place / "model"))
    fake.start()
    bounds = ("--max-queued", "2", "--vllm-timeout", "0.3")
    with _server(place, port, "--engine", "vllm", "--vllm-url", fake.url, *bounds) as process:
        _wait_until_ready(port, process)
        fake.faults = Faults(silence_s=2.0)
        for inputs, status, says in ((["x"] * 3, 429, "at most 2 may"), (["x"], 503, "did not answer in time")):
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json={**ASK, "input": inputs}, timeout=30)
            assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True)
    fake.stop()
