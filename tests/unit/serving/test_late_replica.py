"""A server that starts while an alias points at what it cannot serve answers as those that were there before."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

import httpx
import pytest

from promptstore.client import Client
from promptstore.client.attempts import NO_RETRIES
from promptstore.lm.frozen import FrozenModel
from promptstore.serving.options import ServerOptions
from promptstore.store.blobs import place_of
from promptstore.store.layout import COMMITS
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import Call, Fault, ScriptedObjects
from promptstore.testing.served import SENTIMENT, TOPIC, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama
from tests.unit.serving.test_following import NEVER_S, Clock, World, followed
from tests.unit.serving.test_rollout import wait_for


@pytest.fixture
def world(model: FrozenModel) -> Iterator[World]:
    with followed(model) as found:
        yield found


@contextmanager
def _latecomer(world: World, model: FrozenModel, fault: Callable[[Call], Fault | None]) -> Iterator[World]:
    """Another server on the same store, for which some objects are out of order."""
    faults = ScriptedObjects(world.writer.ledger.objects)
    reader = PromptStore(type(world.writer.ledger).open(faults, actor="late"), faults)
    faults.script = fault
    clock = Clock()
    with (
        live_server(reader, model, ServerOptions(poll_s=NEVER_S), clock=clock) as live,
        httpx.Client(base_url=live.url, timeout=30) as client,
    ):
        yield World(world.writer, faults, client, live.context, clock)


@pytest.mark.parametrize("is_foreign", [False, True])
def test_a_server_that_comes_late_answers_as_those_that_were_there(
    world: World, model: FrozenModel, is_foreign: bool
) -> None:
    wrong = publish_random(world.writer, tiny_llama(seed=9) if is_foreign else model, SENTIMENT, seed=2)
    key = str(place_of(world.writer.state, "payload", wrong.payload))
    with _latecomer(world, model, lambda call: Fault.CORRUPT if call.key == key else None) as late:
        assert late.version() == "sentiment:1"
        assert late.metric('promptstore_version_refused{alias="production",task="sentiment",version="2"}') == 1.0
        (refused,) = late.client.get("/readyz").json()["refused"]
        assert (refused["task"], refused["version"]) == ("sentiment", 2)
        publish_random(world.writer, model, SENTIMENT, seed=3)
        late.poll()
        assert late.version() == "sentiment:3"
        late.faults.script = lambda _: None
        late.clock.now += NEVER_S
        world.writer.rollback("sentiment", reason="worse")
        late.poll()
        assert late.version() == ("sentiment:3" if is_foreign else "sentiment:2")


def test_a_late_server_takes_what_is_mended(world: World, model: FrozenModel) -> None:
    wrong = publish_random(world.writer, model, SENTIMENT, seed=2)
    key = str(place_of(world.writer.state, "payload", wrong.payload))
    with _latecomer(world, model, lambda call: Fault.CORRUPT if call.key == key else None) as late:
        assert late.version() == "sentiment:1"
        late.faults.script = lambda _: None
        late.clock.now += 61.0
        late.poll()
        assert late.version() == "sentiment:2"
        assert late.client.get("/readyz").json()["refused"] == []


def test_a_server_that_can_serve_no_alias_is_not_ready_until_it_can(world: World, model: FrozenModel) -> None:
    with _latecomer(world, model, lambda _: Fault.UNAVAILABLE) as late:
        ready = late.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "no alias of the store can be served")
        assert [refused["task"] for refused in ready.json()["refused"]] == ["sentiment"]
        assert late.client.get("/healthz").status_code == 200
        with Client(str(late.client.base_url), retries=NO_RETRIES) as client:
            assert client.state()["status"] == ready.json()["status"]
        late.faults.script = lambda _: None
        late.poll()
        assert late.client.get("/readyz").json()["status"] == "ready"
        assert late.version() == "sentiment:1"


def test_a_server_of_another_model_or_of_an_empty_store_is_ready(world: World, model: FrozenModel) -> None:
    with live_server(new_store(), model, ServerOptions(poll_s=NEVER_S)) as empty:
        assert httpx.get(f"{empty.url}/readyz").status_code == 200
    with _latecomer(world, tiny_llama(seed=9), lambda _: None) as foreign:
        assert foreign.client.get("/readyz").json()["status"] == "ready"
        assert foreign.status("sentiment") == (409, "incompatible_model")


def test_earlier_versions_that_come_slowly_hold_up_no_promotion(model: FrozenModel, world: World) -> None:
    with _latecomer(world, model, lambda _: None) as late:
        slow = [publish_random(world.writer, model, TOPIC, seed=seed) for seed in range(3)]
        keys = {str(place_of(world.writer.state, "manifest", each.digest)) for each in slow[:2]}
        damaged = str(place_of(world.writer.state, "payload", slow[2].payload))
        let_go = Event()

        def script(call: Call) -> Fault | None:
            if call.key in keys:
                let_go.wait(60)
            return Fault.CORRUPT if call.key == damaged else None

        late.faults.script = script
        publish_random(world.writer, model, SENTIMENT, seed=4)
        late.poll()
        assert (late.version(), late.status("topic")) == ("sentiment:2", (503, "not_serving"))
        publish_random(world.writer, model, SENTIMENT, seed=5)
        late.poll()
        assert late.version() == "sentiment:3"
        let_go.set()

        def has_come() -> bool:
            late.poll()
            return late.status("topic")[0] == 200

        wait_for(has_come)
        assert late.version("topic") == "topic:2"
        (refused,) = late.client.get("/readyz").json()["refused"]
        assert (refused["task"], refused["version"]) == ("topic", 3)


def test_a_stand_in_that_comes_with_what_it_stands_in_for_is_not_taken(model: FrozenModel, world: World) -> None:
    with _latecomer(world, model, lambda _: None) as late:
        versions = [publish_random(world.writer, model, TOPIC, seed=seed) for seed in range(3)]
        before = str(place_of(world.writer.state, "manifest", versions[1].digest))
        newest = str(place_of(world.writer.state, "payload", versions[2].payload))
        let_go, has_come = Event(), Event()

        def script(call: Call) -> Fault | None:
            if call.key == before:
                let_go.wait(60)
                has_come.set()
            return Fault.UNAVAILABLE if call.key == newest and not let_go.is_set() else None

        late.faults.script = script
        late.poll()
        assert late.status("topic") == (503, "not_serving")
        let_go.set()
        assert has_come.wait(60)
        time.sleep(0.2)
        late.poll()
        for _ in range(3):
            late.poll()
            assert late.version("topic") == "topic:3"
        shown = late.client.get("/readyz").json()
        assert (shown["refused"], shown["awaited"]) == ([], [])
        world.writer.promote("topic:1", force=True, reason="test")
        late.poll()
        assert late.version("topic") == "topic:1"
        pinned = {each.digest for each in versions if late.context.bank.is_pinned(each.digest)}
        assert pinned == {versions[0].digest}


def test_what_was_on_its_way_when_the_store_went_away_is_taken_in(model: FrozenModel, world: World) -> None:
    version = publish_random(world.writer, model, SENTIMENT, seed=2)
    manifest = str(place_of(world.writer.state, "manifest", version.digest))
    let_go = Event()

    def script(call: Call) -> Fault | None:
        if call.key == manifest:
            let_go.wait(60)
        return None

    world.faults.script = script
    world.poll()
    assert world.version() == "sentiment:1"
    world.faults.script = lambda call: Fault.UNAVAILABLE if call.key.startswith(COMMITS) else None
    let_go.set()

    def has_switched() -> bool:
        world.poll()
        return world.version() == "sentiment:2"

    wait_for(has_switched)
    assert world.client.get("/readyz").json()["status"] == "ready, serving what was last known"


def test_an_alias_without_a_version_that_can_be_served_is_not_asked_for_over_and_over(
    world: World, model: FrozenModel
) -> None:
    versions = [publish_random(world.writer, model, SENTIMENT, seed=seed) for seed in (2, 3, 4)]
    first = world.writer.resolve("sentiment:1")
    keys = {str(place_of(world.writer.state, "payload", each.payload)) for each in (first, *versions)}
    with _latecomer(world, model, lambda call: Fault.CORRUPT if call.key in keys else None) as late:
        read = [call.key for call in late.faults.calls if call.key in keys]
        assert len(set(read)) == 3  # what it points at, and the two before
        for _ in range(5):
            late.poll()
        assert [call.key for call in late.faults.calls if call.key in keys] == read
        late.clock.now += 61.0
        late.poll()
        assert len([call for call in late.faults.calls if call.key in keys]) == 2 * len(read)
        late.faults.script = lambda _: None
        late.clock.now += 61.0
        late.poll()
        assert late.version() == "sentiment:4"
