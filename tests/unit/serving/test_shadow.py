"""What is asked of both versions of a trial on the side, and what comes of it."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from promptstore.client import Client
from promptstore.lm.frozen import FrozenModel
from promptstore.serving.middleware import JsonFormatter
from promptstore.serving.options import ServerOptions
from promptstore.serving.shadow import Shadow
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import (
    Bounds,
    active_rollouts,
    start_rollout,
)
from promptstore.testing.served import (
    ANSWER,
    LiveServer,
    live_server,
    publish_random,
    store_of_candidates,
)
from tests.unit.serving.test_rollout import KEY, ask, wait_for


@pytest.fixture
def store(model: FrozenModel) -> PromptStore:
    return store_of_candidates(model)


@pytest.fixture
def live(store: PromptStore, model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store, model, ServerOptions(poll_s=3600)) as found:
        yield found


def test_a_shadow_answers_nobody_and_its_labels_are_compared(store: PromptStore, live: LiveServer) -> None:
    start_rollout(store, "sentiment:3", mode="shadow")
    live.context.follower.poll()
    texts = [f"text number {number}" for number in range(20)]
    assert {ask(live, text=text) for text in texts} == {"sentiment:1"}
    trial, _ = live.context.follower.table.trials[KEY]
    wait_for(lambda: trial.compared == 20)
    same = 0
    for text in texts:
        labels = [
            httpx.post(f"{live.url}/v1/classify", json={"model": ref, "input": text}).json()["results"][0]["label"]
            for ref in ("sentiment:1", "sentiment:3")
        ]
        same += labels[0] == labels[1]
    assert trial.agreed == same
    with Client(live.url) as client:
        (shown,) = client.trials()
    assert shown["agreement"] == same / 20


def test_a_long_input_of_a_shadow_is_encoded_beside_the_loop(
    store: PromptStore, live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_rollout(store, "sentiment:3", mode="shadow")
    live.context.follower.poll()
    threads: list[str] = []
    ask_label = Shadow.ask_label

    def note(shadow: Shadow, *asked: Any) -> None:
        threads.append(threading.current_thread().name)
        ask_label(shadow, *asked)

    monkeypatch.setattr(Shadow, "ask_label", note)
    for text in ("short", "long " * 3000):
        ask(live, text=text)
    trial, _ = live.context.follower.table.trials[KEY]
    wait_for(lambda: trial.compared == 2)
    short, long = threads
    assert long.startswith("encoding")
    assert not short.startswith("encoding")


def test_a_shadow_that_disagrees_too_much_is_given_up_here_and_in_the_store(
    store: PromptStore, live: LiveServer
) -> None:
    # No two labels agree more often than always, so the bound cannot be kept by versions that differ at all.
    bounds = Bounds(min_answers=10, min_agreement=1.0)
    start_rollout(store, "sentiment:3", mode="shadow", bounds=bounds)
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    for number in range(200):
        ask(live, text=f"good bad {number} " * (number % 7))
        if trial.is_over:
            break
    wait_for(lambda: trial.is_over)
    wait_for(lambda: active_rollouts(store.refresh()) == {})
    last = store.state.task("sentiment").version(3).attestations[-1]
    assert (last.kind, last.body["state"]) == ("rollout", "aborted")
    assert "agree" in last.body["why"]
    assert 'promptstore_rollouts_given_up_total{alias="production"' in httpx.get(f"{live.url}/metrics").text
    live.context.follower.poll()
    assert live.context.follower.table.trials == {}


def test_what_a_share_of_callers_is_answered_is_compared_with_the_version_in_place(
    store: PromptStore, live: LiveServer
) -> None:
    bounds = Bounds(min_answers=10, max_latency_ratio=1000.0, min_agreement=1.0)
    start_rollout(store, "sentiment:2", share=0.5, bounds=bounds)
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    answered = Counter[str]()
    for number in range(300):
        answered[ask(live, text=f"good bad {number} " * (number % 7))] += 1
        if trial.is_over:
            break
    wait_for(lambda: trial.is_over)
    assert answered["sentiment:1"] > 0
    assert 10 <= trial.compared <= answered["sentiment:2"]
    assert trial.on_trial.answers == answered["sentiment:2"]
    assert "agree" in trial.given_up
    wait_for(lambda: active_rollouts(store.refresh()) == {})
    assert ask(live) == "sentiment:1"


def test_without_that_bound_nothing_is_asked_twice(store: PromptStore, live: LiveServer) -> None:
    start_rollout(store, "sentiment:2", share=1.0)
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    assert {ask(live) for _ in range(5)} == {"sentiment:2"}
    assert trial.compared == 0
    assert "promptstore_shadow_inputs_total{" not in httpx.get(f"{live.url}/metrics").text


@pytest.mark.parametrize("length", [1, 3000])
def test_a_difference_is_logged_under_the_id_of_its_request(store: PromptStore, live: LiveServer, length: int) -> None:
    lines: list[dict[str, Any]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    start_rollout(store, "sentiment:3", mode="shadow")
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    keeping, logger = Keeping(), logging.getLogger("promptstore.serving.shadow")
    logger.addHandler(keeping)
    logger.setLevel(logging.INFO)
    try:
        for number in range(40):
            body = {"model": "sentiment", "input": f"good bad {number} " * length}
            httpx.post(f"{live.url}/v1/classify", json=body, headers={"x-request-id": f"asked-{number}"}, timeout=30)
            if trial.compared > trial.agreed:
                break
        wait_for(lambda: len(lines) > 0)
    finally:
        logger.removeHandler(keeping)
        logger.setLevel(logging.NOTSET)
    assert trial.compared > trial.agreed, "no text got two labels, so this shows nothing"
    told = lines[0]
    assert told["request_id"].startswith("asked-")
    assert told["version"] == "sentiment:3"
    assert told["in_place"] != told["on_trial"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_shadow_writes_too_and_greedy_texts_are_compared(
    store: PromptStore, live: LiveServer, model: FrozenModel, streams: bool
) -> None:
    for seed in (1, 2):
        publish_random(store, model, ANSWER, seed=seed, alias=None)
    store.promote("answer:1", force=True, reason="test")
    start_rollout(store, "answer:2", mode="shadow")
    live.context.follower.poll()

    def write(ref: str, question: str, temperature: float = 0.0) -> str:
        with Client(live.url) as client:
            if streams:
                return "".join(client.stream(ref, {"question": question}, max_tokens=3, temperature=temperature))
            return client.complete(ref, {"question": question}, max_tokens=3, temperature=temperature).text

    questions = [f"number {number}?" for number in range(8)]
    in_place = {question: write("answer", question) for question in questions}
    trial, _ = live.context.follower.table.trials["answer", "production"]
    wait_for(lambda: trial.compared == len(questions))
    assert trial.agreed == sum(in_place[question] == write("answer:2", question) for question in questions)
    write("answer", "by chance?", temperature=1.0)
    assert (
        'promptstore_shadow_inputs_total{outcome="left out",task="answer"} 1.0' in httpx.get(f"{live.url}/metrics").text
    )
    assert trial.compared == len(questions)
