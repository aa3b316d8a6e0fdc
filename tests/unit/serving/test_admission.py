"""Whether a request may begin, and what it costs until it does."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.options import ServerOptions
from promptstore.serving.table import AliasTable, Target
from promptstore.store.store_threads import StoreThreads
from promptstore.testing.served import LiveServer, live_server, store_of

ASK = {"model": "sentiment", "input": "x"}


@pytest.fixture(scope="module")
def bounded(model: FrozenModel) -> Iterator[LiveServer]:
    options = ServerOptions(poll_s=60, parallel_batches=1, scheduler=SchedulerLimits(queued=8, wait_s=0.0))
    with live_server(store_of(model), model, options) as live:
        yield live


class Counted:
    """As `encoder`, and tells who encoded what."""

    def __init__(self, encoder: TaskEncoder) -> None:
        self._encoder = encoder
        self.encoded: list[tuple[str, str]] = []

    def encode(self, row: dict[str, str]) -> list[int]:
        self.encoded.append((threading.current_thread().name, next(iter(row.values()))))
        return self._encoder.encode(row)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


@pytest.fixture
def counted(bounded: LiveServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Counted]:
    def count(task: str) -> Counted:
        target = bounded.context.follower.table.targets[task, "production"]
        counted = Counted(target.prompt.encoder)
        monkeypatch.setattr(bounded.context.follower, "table", _with_encoder(bounded, target, counted))
        return counted

    return count


def _with_encoder(live: LiveServer, target: Target, encoder: Any) -> AliasTable:
    table = live.context.follower.table
    changed = replace(target, prompt=replace(target.prompt, encoder=encoder))
    return replace(table, targets={**table.targets, (target.version.task, "production"): changed})


@pytest.mark.parametrize(
    ("path", "task", "field"), [("/v1/classify", "sentiment", "input"), ("/v1/completions", "answer", "prompt")]
)
def test_what_the_queue_would_refuse_costs_no_encoding(
    bounded: LiveServer, counted: Callable[[str], Counted], path: str, task: str, field: str
) -> None:
    encoder = counted(task)
    answer = httpx.post(f"{bounded.url}{path}", json={"model": task, field: ["x"] * 9}, timeout=60)
    assert (answer.status_code, encoder.encoded) == (429, [])


def test_an_input_that_occurs_twice_is_encoded_once_and_a_long_list_beside_the_loop(
    bounded: LiveServer, counted: Callable[[str], Counted]
) -> None:
    encoder, texts = counted("sentiment"), ["a", "b", "a"]
    body = {"model": ["sentiment", "sentiment@production"], "input": texts}
    results = httpx.post(f"{bounded.url}/v1/classify", json=body, timeout=60).json()["results"]
    assert [each["index"] for each in results] == [0, 0, 1, 1, 2, 2]
    assert results[0]["probabilities"] == pytest.approx(results[4]["probabilities"])
    assert [text for _, text in encoder.encoded] == ["a", "b"]
    httpx.post(f"{bounded.url}/v1/classify", json={"model": "sentiment", "input": ["y " * 2200, "z " * 2200]})
    assert {name for name, _ in encoder.encoded[2:]} == {"encoding_0"}


def test_prompts_of_one_completion_begin_together_or_not_at_all(bounded: LiveServer) -> None:
    hold = threading.Event()
    bounded.context.scheduler.call(lambda: hold.wait(60))
    read = bounded.context.bank.counts.total()
    with ThreadPoolExecutor(1) as pool:
        six = pool.submit(httpx.post, f"{bounded.url}/v1/classify", json={**ASK, "input": list("abcdef")}, timeout=60)
        _wait_until(lambda: bounded.context.scheduler.queued == 6)
        refused = httpx.post(f"{bounded.url}/v1/completions", json={"model": "answer", "prompt": list("abc")})
        assert (refused.status_code, bounded.context.scheduler.queued) == (429, 6)
        hold.set()
        assert six.result().status_code == 200
    assert bounded.context.bank.counts.total() == read + 1


def test_a_version_by_number_is_taken_without_a_thread_once_it_is_loaded(bounded: LiveServer) -> None:
    body = {**ASK, "model": "sentiment:1"}
    assert httpx.post(f"{bounded.url}/v1/classify", json=body, timeout=60).status_code == 200
    bounded.context.service.resolver.close()
    try:
        assert httpx.post(f"{bounded.url}/v1/classify", json=body, timeout=60).status_code == 200
    finally:
        bounded.context.service.resolver._pulls = StoreThreads(1, "pull")


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
