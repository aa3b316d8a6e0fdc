"""What becomes of inputs, as /metrics counts it by task, version and outcome."""

import re
from typing import Any

import httpx
import pytest

LONG = "x" * 200_000
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
