"""What becomes of inputs, as /metrics counts it by task, version and outcome."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import httpx
import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import loopback_client
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.options import ServerOptions
from promptstore.testing.served import LiveServer, live_server, store_of

LONG = "x" * 200_000
FIVE = ["a", "b", "c", "d", "e"]
CLASSIFY, COMPLETE, CHAT = "/v1/classify", "/v1/completions", "/v1/chat/completions"


def counted(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Inputs so far, by task and outcome. All are of a first version."""
    text = client.get("/metrics").text
    pattern = r'^promptstore_inputs_total{outcome="(\w+)",task="(\w+)",version="1"} (\S+)$'
    return {(task, outcome): float(value) for outcome, task, value in re.findall(pattern, text, flags=re.MULTILINE)}


def gained(client: httpx.Client, before: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return {key: value - before.get(key, 0) for key, value in counted(client).items() if value != before.get(key)}


@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        (CLASSIFY, {"model": "sentiment", "input": LONG}, {"sentiment": 1}),
        (CLASSIFY, {"model": "sentiment:1", "input": {"review": "x"}}, {"sentiment": 1}),
        (CLASSIFY, {"model": "entailment", "input": {"premise": "it rains"}}, {"entailment": 1}),
        (CLASSIFY, {"model": "topic", "input": ["a", LONG, "b"]}, {"topic": 3}),
        (CLASSIFY, {"model": ["sentiment", "entailment"], "input": ["a", "b"]}, {"sentiment": 2, "entailment": 2}),
        (CLASSIFY, {"model": ["sentiment", "topic"], "input": ["x"] * 200}, {"sentiment": 200, "topic": 200}),
        (CLASSIFY, {"model": "answer", "input": ["a", "b"]}, {"answer": 2}),
        (COMPLETE, {"model": "sentiment", "prompt": LONG}, {"sentiment": 1}),
        (COMPLETE, {"model": "answer", "prompt": ["a", LONG]}, {"answer": 2}),
        (COMPLETE, {"model": "answer", "prompt": LONG, "stream": True}, {"answer": 1}),
        (COMPLETE, {"model": "answer", "prompt": "a", "max_tokens": 100_000}, {"answer": 1}),
        (COMPLETE, {"model": "answer", "prompt": ["a", "b"], "max_tokens": 100_000}, {"answer": 2}),
        (COMPLETE, {"model": "answer", "prompt": "a", "temperature": -1}, {"answer": 1}),
        (CHAT, {"model": "answer", "messages": [{"role": "user", "content": LONG}]}, {"answer": 1}),
        (CHAT, {"model": "nothing", "messages": [{"role": "user", "content": "a"}]}, {}),
    ],
)
def test_inputs_that_are_refused_for_what_they_hold_are_counted_for_their_task_with_all_of_their_request(
    client: httpx.Client, path: str, body: dict[str, Any], refused: dict[str, int]
) -> None:
    before = counted(client)
    answer = client.post(path, json=body)
    assert answer.status_code == (400 if refused else 404), answer.text
    assert gained(client, before) == {(task, "refused"): count for task, count in refused.items()}


@pytest.mark.parametrize("task", ["sentiment", "answer"])
def test_a_stream_of_several_prompts_is_refused_before_any_is_answered(client: httpx.Client, task: str) -> None:
    before = counted(client)
    answer = client.post(COMPLETE, json={"model": task, "prompt": ["a", "b"], "stream": True})
    assert (answer.status_code, gained(client, before)) == (400, {})
    assert "a stream takes one prompt" in answer.json()["error"]["message"]


def test_inputs_that_are_answered_are_counted_once_and_as_nothing_else(client: httpx.Client) -> None:
    before = counted(client)
    assert client.post(CLASSIFY, json={"model": ["sentiment", "topic"], "input": ["a", "b"]}).status_code == 200
    assert client.post(COMPLETE, json={"model": "answer", "prompt": ["a", "b"], "max_tokens": 2}).status_code == 200
    assert gained(client, before) == {("sentiment", "ok"): 2, ("topic", "ok"): 2, ("answer", "ok"): 2}


@contextmanager
def own_server(model: FrozenModel, *, timeout_s: float = 30.0) -> Iterator[tuple[LiveServer, httpx.Client]]:
    options = ServerOptions(parallel_batches=1, scheduler=SchedulerLimits(queue_timeout_s=timeout_s))
    with live_server(store_of(model), model, options) as live, loopback_client(30) as client:
        client.base_url = httpx.URL(live.url)
        yield live, client


FIVE_ASKED = [(CLASSIFY, {"model": "sentiment", "input": FIVE}), (COMPLETE, {"model": "answer", "prompt": FIVE})]


@pytest.mark.parametrize(("path", "body"), FIVE_ASKED)
def test_inputs_that_wait_too_long_are_refused_with_all_of_their_request(
    model: FrozenModel, path: str, body: dict[str, Any]
) -> None:
    with own_server(model, timeout_s=0.1) as (live, client):
        is_held = Event()

        def hold() -> None:
            is_held.set()
            time.sleep(1)

        live.context.scheduler.call(hold)
        assert is_held.wait(30)
        assert client.post(path, json=body).status_code == 429
        assert counted(client) == {(body["model"], "refused"): 5}


@pytest.mark.parametrize(("path", "body"), FIVE_ASKED)
def test_inputs_of_a_request_that_fails_are_all_counted(model: FrozenModel, path: str, body: dict[str, Any]) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with own_server(model) as (live, client):
        scheduler: Any = live.context.scheduler
        for each in scheduler._engines:
            each._decoding.read = each._decoding.open_rows = fail
        assert client.post(path, json=body).status_code == 503
        assert counted(client) == {(body["model"], "failed"): 5}
