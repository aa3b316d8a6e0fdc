"""A version on trial whose answers fail: the server gives it up by itself, and callers of the one in place see nothing.

The prompt is sound, and beyond what the served dtype holds: fitted in float32, answered for in float16. Its scores are
no numbers.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx
import numpy as np
import pytest
import torch

from promptstore.core.prompt import SoftPrompt
from promptstore.core.state import PromptVersion
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.head import read_head
from promptstore.loopback import loopback_client
from promptstore.serving.options import ServerOptions
from promptstore.serving.trials import Trial
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import Bounds, active_rollouts, start_rollout
from promptstore.testing.served import ANSWER, SENTIMENT, TOPIC, LiveServer, live_server, new_store, publish_random

CALLERS = [f"caller-{number}" for number in range(24)]
BEYOND_FLOAT16 = 1e5
# A caller's question, asked of a world.
Ask = Callable[["World", str], httpx.Response]
BOUNDS = Bounds(min_answers=10, max_error_rate=0.2, max_latency_ratio=1000.0)


@pytest.fixture(scope="module")
def half(model: FrozenModel) -> FrozenModel:
    from promptstore.testing.tiny_models import tiny_llama

    network = tiny_llama().network.to(torch.float16)
    return replace(model, network=network, head=read_head(network))


@dataclass(frozen=True, slots=True)
class World:
    """A store, a server that follows it, and a client of that."""

    store: PromptStore
    live: LiveServer
    client: httpx.Client

    def ask(self, path: str, body: object, caller: str = "") -> httpx.Response:
        return self.client.post(path, json=body, headers={"x-promptstore-caller": caller} if caller else {})

    def trial_of(self, task: str) -> Trial:
        self.live.context.follower.poll()
        return self.live.context.follower.table.trials[task, "production"][0]

    def wait_until(self, is_true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not is_true():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def world(half: FrozenModel) -> Iterator[World]:
    store = new_store()
    for seed, task in enumerate((SENTIMENT, TOPIC, ANSWER)):
        publish_random(store, half, task, seed=seed)
    objects = store.ledger.objects
    reader = PromptStore(Ledger.open(objects, actor="server"), objects)
    with live_server(reader, half, ServerOptions(poll_s=0.05)) as live, loopback_client(30) as client:
        client.base_url = httpx.URL(live.url)
        yield World(store, live, client)


def publish_failing(store: PromptStore, model: FrozenModel, task: TaskSpec) -> PromptVersion:
    embeddings = np.full((4, model.hidden_size), BEYOND_FLOAT16, np.float32)
    return store.publish(SoftPrompt(embeddings, model.fingerprint), task, reason="test")


def said(answer: httpx.Response) -> object:
    """The labels' probabilities, or the text."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["text"] if "choices" in body else body["results"][0]["probabilities"]


def label_of(world: World, caller: str) -> httpx.Response:
    return world.ask("/v1/classify", {"model": "sentiment", "input": "a great film"}, caller)


def text_of(world: World, caller: str) -> httpx.Response:
    return world.ask("/v1/completions", {"model": "answer", "prompt": "who ?", "max_tokens": 3}, caller)


def ask_until_over(world: World, trial: Trial, ask: Ask) -> list[tuple[str, httpx.Response]]:
    """What callers were answered, several at a time, until the server gave the trial up, and some more."""
    answers: list[tuple[str, httpx.Response]] = []

    def call(number: int) -> None:
        for caller in CALLERS[number::6] * 100:
            is_last = trial.is_over
            answers.append((caller, ask(world, caller)))
            if is_last:
                return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(call, range(6)))
    assert trial.is_over, "nobody was answered often enough"
    return answers


def require_aborted(world: World, version: PromptVersion, asked: int) -> None:
    """The server wrote the rollout's end, and why, into the store."""
    world.wait_until(lambda: not active_rollouts(world.store.refresh()))
    last = world.store.resolve(str(version)).attestations[-1]
    assert (last.kind, last.body["state"]) == ("rollout", "aborted")
    assert re.fullmatch(r"(\d+) of \1 answers failed, bound 20.00%", last.body["why"])
    commit = list(world.store.ledger.commits(world.store.state.number))[-1]
    assert (commit.actor, commit.reason) == ("server", last.body["why"])
    metrics = world.client.get("/metrics").text
    given_up = f'promptstore_rollouts_given_up_total{{alias="production",task="{version.task}",version="2"}} 1.0'
    assert given_up in metrics
    failed = f'promptstore_inputs_total{{outcome="failed",task="{version.task}",version="2"}}'
    assert asked == next((float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(failed)), 0)


@pytest.mark.parametrize(("task", "ask"), [(SENTIMENT, label_of), (ANSWER, text_of)])
def test_answers_that_fail_end_the_rollout_and_callers_of_the_version_in_place_never_see_one(
    world: World, half: FrozenModel, task: TaskSpec, ask: Ask
) -> None:
    own = pytest.approx(said(ask(world, "")), abs=0.02)  # what float16 rounds in one batch or another
    failing = publish_failing(world.store, half, task)
    start_rollout(world.store, str(failing), share=0.5, bounds=BOUNDS, force=True, reason="test")
    trial = world.trial_of(task.name)
    takers = {caller for caller in CALLERS if trial.takes(caller)}
    assert 0 < len(takers) < len(CALLERS)

    answers = ask_until_over(world, trial, ask)

    assert all(answer.status_code == 200 for caller, answer in answers if caller not in takers)
    failures = [answer for _, answer in answers if answer.status_code != 200]
    assert {(each.status_code, each.json()["error"]["code"]) for each in failures} == {(503, "corrupt")}
    assert "the prompt drives this dtype out of range" in failures[0].json()["error"]["message"]
    assert len(failures) >= BOUNDS.min_answers
    for answer in [each for _, each in answers if each.status_code == 200] + [ask(world, each) for each in CALLERS]:
        assert answer.headers["x-promptstore-version"] == f"{task.name}:1"
        assert said(answer) == own
    require_aborted(world, failing, len(failures))
    world.wait_until(lambda: not world.live.context.follower.table.trials)
    assert {ask(world, each).headers["x-promptstore-version"] for each in CALLERS} == {f"{task.name}:1"}


@pytest.mark.parametrize(("task", "ask"), [(SENTIMENT, label_of), (ANSWER, text_of)])
def test_a_shadow_whose_answers_fail_is_given_up_and_no_caller_sees_one(
    world: World, half: FrozenModel, task: TaskSpec, ask: Ask
) -> None:
    own = pytest.approx(said(ask(world, "")), abs=0.02)  # what float16 rounds in one batch or another
    failing = publish_failing(world.store, half, task)
    start_rollout(world.store, str(failing), mode="shadow", bounds=BOUNDS)
    trial = world.trial_of(task.name)
    answers = ask_until_over(world, trial, ask)
    assert [answer.status_code for _, answer in answers] == [200] * len(answers)
    assert all(said(answer) == own for _, answer in answers)
    require_aborted(world, failing, 0)


def test_a_stream_that_fails_at_its_first_token_is_an_error_and_no_stream(world: World, half: FrozenModel) -> None:
    failing = publish_failing(world.store, half, ANSWER)
    world.live.context.follower.poll()
    body = {"model": str(failing), "prompt": "who ?", "max_tokens": 3, "stream": True}
    answer = world.ask("/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "corrupt")
    assert text_of(world, "").status_code == 200
