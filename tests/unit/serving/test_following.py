"""An alias switches when, and only when, what it is to mean is ready; whatever is wrong, the old version answers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.objects.memory import MemoryObjectStore
from promptstore.serving.context import ServerContext
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.options import ServerOptions
from promptstore.store.blobs import place_of
from promptstore.store.prompt_store import PromptStore, PulledPrompt
from promptstore.testing.scripted_objects import Call, Fault, ScriptedObjects
from promptstore.testing.served import SENTIMENT, TOPIC, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

NEVER_S = 3600.0


@dataclass(slots=True)
class Clock:
    """Monotonic seconds that pass when told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class World:
    """A server over a store that can misbehave, and a writer on the same store that cannot see the faults."""

    writer: PromptStore
    faults: ScriptedObjects
    client: httpx.Client
    context: ServerContext
    clock: "Clock"

    def version(self, ref: str = "sentiment") -> str:
        answer = self.client.post("/v1/classify", json={"model": ref, "input": "x"})
        assert answer.status_code == 200, answer.text
        return answer.headers["x-promptstore-version"]

    def status(self, ref: str) -> tuple[int, str]:
        answer = self.client.post("/v1/classify", json={"model": ref, "input": "x"})
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    def poll(self) -> None:
        self.context.follower.poll()

    def metric(self, line: str) -> float | None:
        for found in self.client.get("/metrics").text.splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return None


@contextmanager
def followed(model: FrozenModel) -> Iterator[World]:
    """A server that polls only when told to."""
    objects = MemoryObjectStore("followed")
    writer = new_store(objects)
    publish_random(writer, model, SENTIMENT, seed=1)
    faults = ScriptedObjects(objects)
    reader = PromptStore(type(writer.ledger).open(faults, actor="server"), faults)
    clock = Clock()
    with (
        live_server(reader, model, ServerOptions(poll_s=NEVER_S), clock=clock) as live,
        httpx.Client(base_url=live.url, timeout=30) as client,
    ):
        yield World(writer, faults, client, live.context, clock)


@pytest.fixture
def world(model: FrozenModel) -> Iterator[World]:
    with followed(model) as found:
        yield found


def _down(call: Call) -> Fault | None:
    return Fault.UNAVAILABLE


def test_a_promotion_is_seen_at_the_next_poll_and_a_rollback_too(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, SENTIMENT, seed=2)
    assert world.version() == "sentiment:1"
    world.poll()
    assert world.version() == "sentiment:2"
    world.writer.rollback("sentiment", reason="worse")
    world.poll()
    assert world.version() == "sentiment:1"
    assert world.metric('promptstore_alias_version{alias="production",task="sentiment"}') == 1.0


def test_the_new_version_is_on_the_device_before_the_alias_names_it(world: World, model: FrozenModel) -> None:
    version = publish_random(world.writer, model, SENTIMENT, seed=2)
    world.poll()
    assert world.context.bank.tier(version.digest) == "device"


def test_a_version_is_made_ready_when_it_is_published_before_any_alias_moves(world: World, model: FrozenModel) -> None:
    version = publish_random(world.writer, model, SENTIMENT, seed=2, alias=None)
    world.poll()
    deadline = time.monotonic() + 10
    while world.context.bank.tier(version.digest) != "device":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert world.version() == "sentiment:1"
    world.writer.promote("sentiment:2", reason="test", force=True)
    world.poll()
    assert world.version() == "sentiment:2"


def test_new_tasks_and_aliases_appear_and_deleted_ones_go(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, TOPIC, seed=2, alias="staging")
    assert world.status("topic@staging") == (404, "model_not_found")
    world.poll()
    assert world.version("topic@staging") == "topic:1"
    world.writer.delete_alias("topic", "staging", reason="done")
    world.poll()
    assert world.status("topic@staging") == (404, "model_not_found")


def test_nothing_new_costs_one_read(world: World) -> None:
    before = len(world.faults.calls)
    world.poll()
    assert [call.verb for call in world.faults.calls[before:]] == ["get"]


def test_a_store_that_is_down_fails_no_request_and_is_reported(world: World, model: FrozenModel) -> None:
    world.faults.script = _down
    publish_random(world.writer, model, SENTIMENT, seed=2)
    world.poll()
    assert world.version() == "sentiment:1"
    ready = world.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["store"]["problem"] is not None
    assert "last known" in ready.json()["status"]
    world.faults.script = lambda _: None
    world.poll()
    assert world.version() == "sentiment:2"
    assert world.client.get("/readyz").json()["store"]["problem"] is None


def test_a_version_that_was_not_pulled_before_is_503_while_the_store_is_down(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, SENTIMENT, seed=2, alias=None)
    publish_random(world.writer, model, SENTIMENT, seed=3, alias=None)
    world.poll()
    world.faults.script = _down
    assert world.status("sentiment:2") == (503, "store_unavailable")
    world.faults.script = lambda _: None
    assert world.version("sentiment:2") == "sentiment:2"
    world.faults.script = _down
    assert world.version("sentiment:2") == "sentiment:2"


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.TRUNCATED])
def test_a_version_that_fails_verification_is_refused_and_the_old_one_stays(
    world: World, model: FrozenModel, fault: Fault
) -> None:
    world.faults.script = lambda call: fault if call.key.startswith("payloads/") else None
    publish_random(world.writer, model, SENTIMENT, seed=2)
    world.poll()
    assert world.version() == "sentiment:1"
    assert world.metric('promptstore_version_refused{alias="production",task="sentiment",version="2"}') == 1.0
    (refused,) = world.client.get("/readyz").json()["refused"]
    assert (refused["task"], refused["version"]) == ("sentiment", 2)
    assert world.status("sentiment:2") == (503, "corrupt")
    world.faults.script = lambda _: None
    publish_random(world.writer, model, SENTIMENT, seed=3)
    world.poll()
    assert world.version() == "sentiment:3"
    assert world.metric('promptstore_version_refused{alias="production",task="sentiment",version="2"}') is None


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_version_whose_bytes_are_put_right_is_taken_within_a_minute(
    world: World, model: FrozenModel, is_missing: bool
) -> None:
    version = publish_random(world.writer, model, SENTIMENT, seed=2)
    objects, key = world.writer.ledger.objects, str(place_of(world.writer.state, "payload", version.payload))
    whole = objects.get(key)
    if is_missing:
        objects.delete(key)
    else:
        objects.put(key, whole[:-1])
    refused = 'promptstore_version_refused{alias="production",task="sentiment",version="2"}'
    for waited_s in (0.0, 30.0, 29.0, 2.0):
        world.clock.now += waited_s
        world.poll()
        assert world.metric(refused) == 1.0
    objects.put(key, whole)
    world.clock.now += 58.0
    world.poll()
    assert world.version() == "sentiment:1"
    world.clock.now += 2.0
    world.poll()
    assert world.version() == "sentiment:2"
    assert world.metric(refused) is None


def test_nothing_is_read_again_for_a_version_that_no_mending_makes_fit(world: World) -> None:
    publish_random(world.writer, tiny_llama(seed=9), SENTIMENT, seed=2)
    world.poll()
    before = len(world.faults.calls)
    world.clock.now += 3600.0
    world.poll()
    assert [call.verb for call in world.faults.calls[before:]] == ["get"]


def test_a_version_for_another_model_is_refused_and_the_old_one_stays(world: World) -> None:
    publish_random(world.writer, tiny_llama(seed=9), SENTIMENT, seed=2)
    world.poll()
    assert world.version() == "sentiment:1"
    assert world.metric('promptstore_version_refused{alias="production",task="sentiment",version="2"}') == 1.0
    assert world.status("sentiment:2") == (409, "incompatible_model")


def test_tasks_of_another_model_in_the_same_store_are_no_alarm(world: World) -> None:
    publish_random(world.writer, tiny_llama(seed=9), TOPIC, seed=2)
    world.poll()
    assert world.version() == "sentiment:1"
    assert world.client.get("/readyz").json()["refused"] == []
    assert world.status("topic") == (409, "incompatible_model")
    assert [each["id"] for each in world.client.get("/v1/models").json()["data"]] == ["sentiment"]


def test_a_pull_that_fails_for_the_moment_is_tried_again_without_a_new_commit(world: World, model: FrozenModel) -> None:
    world.faults.script = lambda call: Fault.UNAVAILABLE if call.key.startswith("payloads/") else None
    publish_random(world.writer, model, SENTIMENT, seed=2)
    world.poll()
    assert world.version() == "sentiment:1"
    world.faults.script = lambda _: None
    world.poll()
    assert world.version() == "sentiment:2"


def test_a_log_that_is_damaged_is_refused_and_the_last_known_state_answers(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, SENTIMENT, seed=2)
    world.faults.script = lambda call: Fault.CORRUPT if call.key.startswith("commits/") else None
    world.poll()
    assert world.version() == "sentiment:1"
    assert "commit" in world.client.get("/readyz").json()["store"]["problem"]


def test_a_version_that_expired_is_404_by_number(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, SENTIMENT, seed=2)
    world.writer.expire(["sentiment:1"], reason="old")
    world.poll()
    assert world.version() == "sentiment:2"
    assert world.status("sentiment:1") == (404, "model_not_found")


def test_versions_that_no_alias_names_any_more_let_go_of_their_place(world: World, model: FrozenModel) -> None:
    for seed in range(2, 8):
        publish_random(world.writer, model, SENTIMENT, seed=seed)
        world.poll()
    pins = [entry.pins for entry in world.context.bank._entries.values()]
    holds = [entry.holds for entry in world.context.bank._entries.values()]
    assert sum(pins) == 1
    assert sum(holds) == 0


def test_a_server_of_some_tasks_serves_no_others(model: FrozenModel) -> None:
    writer = new_store()
    for seed, task in enumerate((SENTIMENT, TOPIC)):
        publish_random(writer, model, task, seed=seed)
    options = ServerOptions(poll_s=NEVER_S, tasks=frozenset({"topic"}))
    with live_server(writer, model, options) as live, httpx.Client(base_url=live.url) as client:
        for ref, status in (("topic", 200), ("sentiment", 404), ("sentiment:1", 404)):
            assert client.post("/v1/classify", json={"model": ref, "input": "x"}).status_code == status


def test_a_refresh_by_an_operator_looks_at_once(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, SENTIMENT, seed=2)
    answer = world.client.post("/admin/refresh")
    assert answer.status_code == 200
    assert world.version() == "sentiment:2"


def test_staleness_is_exported_and_bounded(world: World) -> None:
    assert world.metric("promptstore_store_staleness_bound_seconds") == 60.0
    for waited_s, is_stale in ((59.0, 0.0), (2.0, 1.0)):
        world.clock.now += waited_s
        assert world.metric("promptstore_store_is_stale") == is_stale
    assert world.metric("promptstore_store_staleness_seconds") == 61.0
    assert world.client.get("/readyz").json()["store"]["is_stale"] is True
    world.poll()
    assert world.metric("promptstore_store_staleness_seconds") == 0.0
    assert world.metric("promptstore_store_is_stale") == 0.0


def test_an_alias_that_is_not_served_as_the_store_says_grows_stale_though_the_store_is_seen(world: World) -> None:
    publish_random(world.writer, tiny_llama(seed=9), SENTIMENT, seed=2)
    for _ in range(3):
        world.poll()
        world.clock.now += 5.0
    world.poll()
    labels = '{alias="production",task="sentiment"}'
    assert world.metric("promptstore_store_staleness_seconds") == 0.0
    assert world.metric(f"promptstore_alias_staleness_seconds{labels}") == 15.0
    world.writer.rollback("sentiment", reason="of another model")
    world.poll()
    assert world.metric(f"promptstore_alias_staleness_seconds{labels}") == 0.0


def test_a_store_cut_off_for_ten_minutes_fails_no_request_and_is_caught_up_with(
    world: World, model: FrozenModel
) -> None:
    world.faults.script = _down
    for minute in range(10):
        publish_random(world.writer, model, SENTIMENT, seed=2 + minute)
        world.clock.now += 60.0
        world.poll()
        assert world.version() == "sentiment:1"
        ready = world.client.get("/readyz")
        assert (ready.status_code, ready.json()["store"]["staleness_s"]) == (200, 60.0 * (1 + minute))
    assert world.metric("promptstore_store_is_stale") == 1.0
    world.faults.script = lambda _: None
    world.poll()
    assert world.version() == "sentiment:11"
    assert world.metric("promptstore_store_is_stale") == 0.0


def test_a_wall_clock_that_jumps_changes_nothing(
    world: World, model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    for jump_s, number in ((3600.0, 2), (-7200.0, 3), (10 * 365 * 86400.0, 4)):
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
        publish_random(world.writer, model, SENTIMENT, seed=number)
        world.poll()
        assert world.version() == f"sentiment:{number}"
        assert world.metric("promptstore_store_staleness_seconds") == 0.0


@contextmanager
def _slow(world: World, task: str) -> Iterator[None]:
    """Pulls of a task do not end before the block does."""
    loading, is_over = world.context.follower._load, Event()

    def load(pulled: PulledPrompt) -> LoadedPrompt:
        if pulled.version.task == task:
            assert is_over.wait(10)
        return loading(pulled)

    world.context.follower._load, world.context.follower._ready_within_s = load, 0.05
    try:
        yield
    finally:
        is_over.set()


def _poll_until(world: World, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        world.poll()


def _pins(world: World) -> dict[str, int]:
    return {digest: entry.pins for digest, entry in world.context.bank._entries.items() if entry.pins}


def test_a_pull_that_takes_long_holds_up_no_other_and_is_begun_once(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, TOPIC, seed=1)
    world.poll()
    with _slow(world, "topic"):
        awaited = publish_random(world.writer, model, TOPIC, seed=2)
        for number in (2, 3):
            publish_random(world.writer, model, SENTIMENT, seed=number)
            world.poll()
            assert (world.version("topic"), world.version()) == ("topic:1", f"sentiment:{number}")
            world.clock.now += 5.0
            world.context.follower._ready_within_s = 30.0  # none of which is for what was waited for before
        assert _pins(world)[awaited.digest] == 1
        shown = world.client.get("/readyz").json()
        assert (shown["awaited"], shown["refused"]) == ([{"task": "topic", "alias": "production", "version": 2}], [])
        world.poll()
        assert world.metric('promptstore_alias_staleness_seconds{alias="production",task="topic"}') == 10.0
    _poll_until(world, lambda: world.version("topic") == "topic:2")
    assert world.client.get("/readyz").json()["awaited"] == []
    assert sum(_pins(world).values()) == 2


def test_what_comes_after_its_alias_went_elsewhere_is_let_go(world: World, model: FrozenModel) -> None:
    publish_random(world.writer, model, TOPIC, seed=1)
    world.poll()
    before = _pins(world)
    with _slow(world, "topic"):
        publish_random(world.writer, model, TOPIC, seed=2)
        world.poll()
        assert _pins(world) != before
        world.writer.rollback("topic", reason="too slow")
        world.poll()
        assert world.client.get("/readyz").json()["awaited"] == []
    _poll_until(world, lambda: _pins(world) == before)
    assert world.version("topic") == "topic:1"


def test_a_version_that_cannot_be_loaded_at_all_keeps_no_other_from_being_followed(
    world: World, model: FrozenModel
) -> None:
    loading = world.context.follower._load

    def load(pulled: PulledPrompt) -> LoadedPrompt:
        if pulled.version.task == "topic":
            raise ValueError("nobody thought of this")
        return loading(pulled)

    world.context.follower._load = load
    publish_random(world.writer, model, TOPIC, seed=2)
    publish_random(world.writer, model, SENTIMENT, seed=3)
    for _ in range(2):
        world.poll()
    assert world.version() == "sentiment:2"
    assert [refused["task"] for refused in world.client.get("/readyz").json()["refused"]] == ["topic"]
    world.context.follower._load = loading
    world.poll()
    assert world.version("topic") == "topic:1"
