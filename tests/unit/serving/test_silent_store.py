"""A store that neither answers nor fails: what waits for it keeps nothing else, and not the server's end."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import loopback_client
from promptstore.objects.memory import MemoryObjectStore
from promptstore.serving.options import ServerOptions
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import Call, ScriptedObjects
from promptstore.testing.served import SENTIMENT, LiveServer, live_server, new_store, publish_random

NEVER_S = 3600.0
# More than the threads that asyncio has for everything on a machine of a few cores.
MANY = 40


class Silence:
    """Keeps the calls that are meant until it ends. kept: how many it keeps now; begun: set once there is one."""

    def __init__(self, is_meant: Callable[[Call], bool]) -> None:
        self._is_meant = is_meant
        self.begun = Event()
        self.ended = Event()
        self.kept = 0

    def __call__(self, call: Call) -> None:
        if self._is_meant(call) and not self.ended.is_set():
            self.kept += 1
            self.begun.set()
            self.ended.wait(20)
            self.kept -= 1


@contextmanager
def following(faults: ScriptedObjects, model: FrozenModel) -> Iterator[LiveServer]:
    reader = PromptStore(Ledger.open(faults, actor="server"), faults)
    with live_server(reader, model, ServerOptions(poll_s=NEVER_S)) as live:
        yield live


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def writer(model: FrozenModel) -> PromptStore:
    writer = new_store(MemoryObjectStore("silent"))
    publish_random(writer, model, SENTIMENT, seed=1)
    return writer


def test_looks_that_people_wait_for_keep_nobody_else(writer: PromptStore, model: FrozenModel) -> None:
    faults = ScriptedObjects(writer.ledger.objects)
    with following(faults, model) as live, loopback_client(60) as client, ThreadPoolExecutor(MANY) as pool:
        faults.script = silence = Silence(lambda call: call.key.startswith("commits/"))
        try:
            asked = [pool.submit(client.post, f"{live.url}/admin/refresh") for _ in range(MANY)]
            assert silence.begun.wait(30)
            for path in ("/metrics", "/readyz", "/healthz"):
                assert client.get(live.url + path, timeout=5).status_code == 200
            answer = client.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "x"}, timeout=5)
            assert answer.headers["x-promptstore-version"] == "sentiment:1"
            publish_random(writer, model, SENTIMENT, seed=2)
        finally:
            silence.ended.set()
        assert {each.result().status_code for each in asked} == {200}
        answer = client.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "x"})
        assert answer.headers["x-promptstore-version"] == "sentiment:2"


def test_the_end_waits_for_no_pull_that_hangs(writer: PromptStore, model: FrozenModel) -> None:
    for seed, alias in ((2, "staging"), (3, None)):
        publish_random(writer, model, SENTIMENT, seed=seed, alias=alias)
    faults = ScriptedObjects(writer.ledger.objects)
    pulls = Silence(lambda call: call.key.startswith("manifests/"))
    try:
        with following(faults, model) as live:
            live.context.follower._ready_within_s = 0.1
            faults.script = pulls
            writer.promote("sentiment:3", "staging", reason="test", force=True)
            live.context.follower.poll()
            assert pulls.begun.is_set()
        assert pulls.kept == 1
    finally:
        pulls.ended.set()


@pytest.mark.parametrize(
    ("path", "body", "waits_for", "loaded"),
    [
        ("/admin/refresh", {}, "commits/", 1),
        ("/v1/classify", {"model": "sentiment:2", "input": "x"}, "manifests/", 2),
    ],
)
def test_a_request_that_waits_for_the_store_is_ended_soon_once_the_server_drains(
    writer: PromptStore, model: FrozenModel, path: str, body: dict[str, str], waits_for: str, loaded: int
) -> None:
    publish_random(writer, model, SENTIMENT, seed=2, alias=None)
    faults = ScriptedObjects(writer.ledger.objects)
    silence = Silence(lambda call: call.key.startswith(waits_for))
    with following(faults, model) as live, loopback_client(10) as client, ThreadPoolExecutor(1) as pool:
        faults.script = silence
        try:
            asked = pool.submit(client.post, live.url + path, json=body)
            assert silence.begun.wait(30)
            live.context.lifecycle.is_draining = True
            answer = asked.result()
            assert (answer.status_code, answer.json()["error"]["code"], silence.kept) == (503, "not_serving", 1)
        finally:
            silence.ended.set()
        entries = live.context.bank._entries
        wait_until(lambda: [entry.holds for entry in list(entries.values())] == [0] * loaded)
