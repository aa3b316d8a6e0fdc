"""A version on trial: who gets it, what is compared, and when it is given up."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import httpx
import pytest

from promptstore.client import Client
from promptstore.lm.frozen import FrozenModel
from promptstore.objects.memory import MemoryObjectStore
from promptstore.serving.options import ServerOptions
from promptstore.serving.service import SamplingRequest
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import (
    Bounds,
    RolloutMode,
    abort_rollout,
    active_rollouts,
    finish_rollout,
    start_rollout,
)
from promptstore.testing.engine_rig import random_prompt
from promptstore.testing.scripted_objects import Fault, ScriptedObjects
from promptstore.testing.served import (
    ANSWER,
    SENTIMENT,
    LiveServer,
    live_server,
    new_store,
    publish_random,
    store_of_candidates,
)

KEY = ("sentiment", "production")


@pytest.fixture
def store(model: FrozenModel) -> PromptStore:
    return store_of_candidates(model)


@pytest.fixture
def live(store: PromptStore, model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store, model, ServerOptions(poll_s=3600)) as found:
        yield found


def ask(live: LiveServer, *, caller: str = "", text: str = "x") -> str:
    headers = {"x-promptstore-caller": caller} if caller else {}
    answer = httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": text}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-promptstore-alias"] == "production"
    return str(answer.headers["x-promptstore-version"])


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_share_of_callers_gets_the_version_on_trial_and_always_the_same_ones(
    store: PromptStore, live: LiveServer
) -> None:
    start_rollout(store, "sentiment:2", share=0.3)
    live.context.follower.poll()
    callers = [f"caller-{number}" for number in range(60)]
    first = {caller: ask(live, caller=caller) for caller in callers}
    again = {caller: ask(live, caller=caller) for caller in callers}
    assert first == again
    assert 6 <= Counter(first.values())["sentiment:2"] <= 32
    assert set(first.values()) == {"sentiment:1", "sentiment:2"}


def test_the_client_says_who_calls(store: PromptStore, live: LiveServer) -> None:
    start_rollout(store, "sentiment:2", share=0.5)
    live.context.follower.poll()
    with Client(live.url) as client:
        for number in range(20):
            caller = f"caller-{number}"
            expected = ask(live, caller=caller)
            for _ in range(3):
                (answer,) = client.classify("sentiment", "x", caller=caller)
                assert f"sentiment:{answer.version}" == expected


def test_without_a_caller_each_request_is_drawn_by_itself(store: PromptStore, live: LiveServer) -> None:
    start_rollout(store, "sentiment:2", share=0.5)
    live.context.follower.poll()
    assert set(Counter(ask(live) for _ in range(40))) == {"sentiment:1", "sentiment:2"}


def test_finishing_moves_the_alias_and_aborting_leaves_it(store: PromptStore, live: LiveServer) -> None:
    start_rollout(store, "sentiment:2", share=1.0)
    live.context.follower.poll()
    assert ask(live) == "sentiment:2"
    abort_rollout(store, "sentiment", why="changed my mind")
    live.context.follower.poll()
    assert ask(live) == "sentiment:1"
    start_rollout(store, "sentiment:2", share=1.0)
    finish_rollout(store, "sentiment", reason="good")
    live.context.follower.poll()
    assert ask(live) == "sentiment:2"
    assert active_rollouts(store.state) == {}
    assert store.state.task("sentiment").aliases["production"] == 2


def test_a_version_that_is_too_slow_is_given_up_by_one_replica_and_dropped_by_the_other(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    # No answer takes a thousandth of the time of another, so the bound is broken by any.
    start_rollout(store, "sentiment:2", share=0.5, bounds=Bounds(min_answers=10, max_latency_ratio=0.001))
    with live_server(PromptStore(store.ledger, store.ledger.objects), model, ServerOptions(poll_s=3600)) as other:
        for each in (live, other):
            each.context.follower.poll()
        trial, _ = live.context.follower.table.trials[KEY]
        for _ in range(200):
            ask(live)
            if trial.is_over:
                break
        assert "as long" in trial.given_up
        assert {ask(live) for _ in range(20)} == {"sentiment:1"}
        wait_for(lambda: active_rollouts(store.refresh()) == {})
        last = store.state.task("sentiment").version(2).attestations[-1]
        assert (last.kind, last.body["state"]) == ("rollout", "aborted")
        assert set(Counter(ask(other) for _ in range(40))) == {"sentiment:1", "sentiment:2"}
        other.context.follower.poll()
        assert {ask(other) for _ in range(20)} == {"sentiment:1"}


def test_a_version_that_cannot_be_served_is_never_on_trial_and_nothing_else_suffers(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    from promptstore.testing.tiny_models import tiny_llama

    other = tiny_llama(seed=4)
    version = store.publish(random_prompt(other, 4, seed=0), SENTIMENT)
    start_rollout(store, str(version), share=1.0, force=True, reason="test")
    live.context.follower.poll()
    assert ask(live) == "sentiment:1"
    assert live.context.follower.table.trials == {}


def test_a_trial_keeps_its_tallies_when_other_things_change(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    start_rollout(store, "sentiment:2", share=1.0)
    live.context.follower.poll()
    ask(live)
    publish_random(store, model, SENTIMENT, seed=9, alias="staging")
    live.context.follower.poll()
    ask(live)
    trial, _ = live.context.follower.table.trials[KEY]
    assert trial.on_trial.answers == 2


def test_an_abort_that_the_store_did_not_take_is_written_when_it_does(model: FrozenModel) -> None:
    objects = MemoryObjectStore("trials")
    writer = new_store(objects)
    publish_random(writer, model, SENTIMENT, seed=1)
    publish_random(writer, model, SENTIMENT, seed=2, alias=None)
    start_rollout(writer, "sentiment:2", bounds=Bounds(min_answers=1), force=True, reason="test")
    faults = ScriptedObjects(objects, script=lambda call: Fault.UNAVAILABLE if call.writes else None)
    reader = PromptStore(Ledger.open(faults, actor="server"), faults)
    with live_server(reader, model, ServerOptions(poll_s=3600)) as live:
        trial, _ = live.context.follower.table.trials[KEY]
        judge, poll = live.context.service.judge, live.context.follower.poll
        trial.note(is_on_trial=True, error=RuntimeError("broken"))
        judge.judge(trial)
        for _ in range(2):
            wait_for(judge._unwritten[trial.rollout].done)
            poll()
        assert KEY in active_rollouts(writer.refresh())
        assert live.context.follower.table.trials[KEY][0] is trial
        wait_for(judge._unwritten[trial.rollout].done)
        faults.script = lambda _: None
        poll()
        wait_for(lambda: not active_rollouts(writer.refresh()))
        assert "1 of 1 answers failed" in writer.resolve("sentiment:2").attestations[-1].body["why"]
        poll()
        assert live.context.follower.table.trials == {}
        number = writer.state.number
    assert writer.refresh().number == number


def test_what_an_alias_names_to_those_who_keep_to_it_is_the_version_in_place(
    store: PromptStore, live: LiveServer
) -> None:
    start_rollout(store, "sentiment:2", share=1.0)
    live.context.follower.poll()
    assert ask(live) == "sentiment:2"
    for ref, version in (("sentiment", "sentiment:1"), ("sentiment:2", "sentiment:2")):
        shown = httpx.get(f"{live.url}/v1/models/{ref}")
        assert shown.headers["x-promptstore-version"] == version
        assert f"sentiment:{shown.json()['promptstore']['version']}" == version


def _start_unchecked(store: PromptStore, ref: str, mode: RolloutMode) -> None:
    """As an earlier release started one: without a look at what callers have to know."""
    bounds = {"min_answers": 5}
    store.attest(
        ref, "rollout", {"alias": "production", "state": "started", "mode": mode, "share": 1.0, "bounds": bounds}
    )


@pytest.mark.parametrize("mode", get_args(RolloutMode))
def test_a_version_that_refuses_what_the_one_in_place_takes_is_given_up(
    store: PromptStore, live: LiveServer, model: FrozenModel, mode: RolloutMode
) -> None:
    publish_random(store, model, replace(SENTIMENT, template="{title}: {text}"), seed=4, alias=None)
    _start_unchecked(store, "sentiment:4", mode)
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    statuses = [
        httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "x"}).status_code for _ in range(5)
    ]
    assert statuses == [400 if mode == "share" else 200] * 5
    wait_for(lambda: trial.is_over)
    assert "5 of 5 answers failed" in trial.breach()


def test_a_text_that_the_version_on_trial_has_no_room_for_counts_against_it(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    for seed, alias in ((1, "production"), (2, None)):  # the second has one virtual token more
        publish_random(store, model, ANSWER, seed=seed, alias=alias)
    start_rollout(store, "answer:2", share=1.0, bounds=Bounds(min_answers=1), force=True, reason="test")
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials["answer", "production"]

    def ask(ref: str, max_tokens: int) -> str:
        asked = {"model": ref, "prompt": "why?", "max_tokens": max_tokens}
        answer = httpx.post(f"{live.url}/v1/completions", json=asked)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    room = int(ask("answer:1", 1000).split()[-1])
    ask("answer", 1000)
    assert not trial.is_over
    assert ask("answer", room).endswith(f"room for {room - 1}")
    wait_for(lambda: trial.is_over)


def test_what_neither_version_takes_says_nothing_about_the_one_on_trial(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    start_rollout(store, "sentiment:2", share=1.0, bounds=Bounds(min_answers=1))
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials[KEY]
    refused: list[dict[str, str] | str] = [{"review": "x"}, {}, "x" * 200_000]
    for given in refused:
        asked = {"model": "sentiment", "input": given}
        assert httpx.post(f"{live.url}/v1/classify", json=asked).status_code == 400
    assert ask(live) == "sentiment:2"
    assert (trial.on_trial.answers, trial.on_trial.failures) == (1, 0)


def test_who_reads_an_answer_slowly_does_not_make_the_version_slow(
    store: PromptStore, live: LiveServer, model: FrozenModel
) -> None:
    for seed, alias in ((1, "production"), (2, None)):
        publish_random(store, model, ANSWER, seed=seed, alias=alias)
    start_rollout(store, "answer:2", share=1.0, force=True, reason="test")
    live.context.follower.poll()
    trial, _ = live.context.follower.table.trials["answer", "production"]
    service, scheduler = live.context.service, live.context.scheduler

    async def read_slowly() -> float:
        """Seconds after which the engine had nothing left to do; the reader was not done then."""
        async with service.resolver.holding("answer") as target:
            ready = await service.ready(target, ["why?"], SamplingRequest(max_tokens=3))
            started = time.monotonic()
            with service.generating(target, ready) as (pieces,):
                await anext(pieces)
                await asyncio.to_thread(wait_for, lambda: not (scheduler.running or scheduler.queued))
                engine_s = time.monotonic() - started
                await asyncio.sleep(0.1 + engine_s)
                async for _ in pieces:
                    pass
        return engine_s

    engine_s = asyncio.run(read_slowly())
    assert trial.on_trial.answers == 1
    assert 0 < trial.on_trial.median_s < 1.05 * engine_s
