"""Whether servers took a promotion: real servers, one of them with another base model, one that is not there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.serving.api_keys import ApiKey, digest_key
from promptstore.serving.loaded import LoadedPrompt
from promptstore.store.prompt_store import PromptStore, PulledPrompt
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.testing.served import SENTIMENT, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning.gate import GatePolicy, GateVerdict
from promptstore.tuning.job_confirm import confirm_promotion
from promptstore.tuning.job_gate import GateOutcome

NOBODY = "http://127.0.0.1:9"


def promoted(store: PromptStore, model: FrozenModel, seed: int) -> GateOutcome:
    version = publish_random(store, model, SENTIMENT, seed=seed)
    verdict = GateVerdict("accuracy", 0.9, None, "0" * 64, 100, (), GatePolicy())
    return GateOutcome(version.task, version.number, version.digest, "production", version.number - 1 or None, verdict)


def test_servers_say_whether_they_took_it(model: FrozenModel) -> None:
    store = new_store()
    promoted(store, model, seed=0)
    with live_server(store, model) as live:
        taken = confirm_promotion(store, promoted(store, model, seed=1), servers=[live.url], timeout_s=20)
        assert (taken.state, taken.explanation) == (
            "confirmed",
            f"sentiment@production is version 2; {live.url} serves it",
        )
        foreign = promoted(store, tiny_llama(seed=5), seed=2)
        refused = confirm_promotion(store, foreign, servers=[live.url], timeout_s=2)
        assert refused.state == "broken"
        assert f"{live.url} refuses it: " in refused.explanation
        assert "was fitted to" in refused.explanation


def test_a_server_that_is_still_loading_it_is_named_and_takes_nothing_back(model: FrozenModel) -> None:
    store, is_over = new_store(), Event()
    with live_server(store, model) as live:
        follower = live.context.follower
        loading = follower._load

        def load(pulled: PulledPrompt) -> LoadedPrompt:
            assert is_over.wait(30)
            return loading(pulled)

        follower._load, follower._ready_within_s = load, 0.0
        outcome = promoted(store, model, seed=0)
        follower.poll()
        slow = confirm_promotion(store, outcome, servers=[live.url], timeout_s=0)
        is_over.set()
        taken = confirm_promotion(store, outcome, servers=[live.url], timeout_s=20)
    assert (slow.state, f"{live.url} has not loaded it yet" in slow.explanation) == ("confirmed", True)
    assert f"{live.url} serves it" in taken.explanation


def test_a_server_that_asks_for_keys_tells_only_with_one(model: FrozenModel) -> None:
    store = new_store()
    keys = [ApiKey("confirming", digest_key("secret"), frozenset({"infer"}))]
    with live_server(store, model, keys=keys) as live:
        outcome = promoted(store, model, seed=0)
        taken = confirm_promotion(store, outcome, servers=[live.url], timeout_s=20, api_key="secret")
        assert f"{live.url} serves it" in taken.explanation
        untold = confirm_promotion(store, outcome, servers=[live.url], timeout_s=0)
        assert (untold.state, "only to callers with one of its keys" in untold.explanation) == ("confirmed", True)


def test_a_server_that_cannot_be_asked_is_named_and_takes_nothing_back(model: FrozenModel) -> None:
    store = new_store()
    found = confirm_promotion(store, promoted(store, model, seed=0), servers=[NOBODY], timeout_s=0)
    assert found.state == "confirmed"
    assert f"{NOBODY} cannot be asked" in found.explanation


@contextmanager
def server_that_refuses(version: int) -> Iterator[str]:
    """The answer of a replica that cannot put the version on its device, and tells so only to those with its key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            refused = {"task": "sst2", "alias": "production", "version": version, "reason": "no room on the device"}
            told = {"store": {"commit": 1 << 30}, "refused": [refused], "trials": []}
            is_known = self.headers["authorization"] == "Bearer secret"
            body = json.dumps(told if is_known else {"status": "ready"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_what_a_server_refuses_is_taken_back(model: FrozenModel, place: JobPlace, runner: FlowRunner) -> None:
    place.tune(model, place.task("sst2"), job="first", **QUICK)
    place.store().promote("sst2:1", force=True, reason="first")
    place.tune(model, place.task("sst2"), job="second", **{**QUICK, "seed": 1})
    asked = {"task_file": str(place.task_file("sst2")), "gate": {"max_drop": 1, "alpha": 1e-9}}
    with server_that_refuses(2) as url:
        told = {"PROMPTSTORE_CONFIRM_AT": url, "PROMPTSTORE_CONFIRM_TIMEOUT_S": "1", "PROMPTSTORE_API_KEY": "secret"}
        told = {**runner.environment, **told}
        ended = FlowRunner(runner.folder, told).run("promote", ref="sst2:2", **asked)
    assert ended.code == 1
    assert f"sst2:2 was taken back: {url} refuses it: no room on the device" in ended.error
    store = place.store()
    assert store.resolve("sst2").number == 1
    assert [(move.before, move.after) for move in store.history("sst2")] == [(None, 1), (1, 2), (2, 1)]
