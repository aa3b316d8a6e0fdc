"""`promptstore rollout status --server`: how a trial does at one replica."""

import json

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.client import Client
from promptstore.errors import RefusedError
from promptstore.serving.api_keys import ApiKey, digest_key
from promptstore.serving.options import ServerOptions
from promptstore.store.rollout import start_rollout
from promptstore.testing.served import live_server, store_of_candidates
from promptstore.testing.tiny_models import tiny_llama


def test_a_replica_says_what_it_counted_of_a_trial() -> None:
    model = tiny_llama()
    store = store_of_candidates(model)
    start_rollout(store, "sentiment:2", share=1.0)
    with live_server(store, model, ServerOptions(poll_s=3600)) as live:
        with Client(live.url) as client:
            client.classify("sentiment", ["x", "y"])
        done = CliRunner().invoke(app, ["rollout", "status", "--server", live.url, "--json"])
    (shown,) = map(json.loads, done.stdout.splitlines())
    assert (shown["task"], shown["version"], shown["answers"]) == ("sentiment", 2, 2)


def test_a_replica_that_asks_for_keys_is_shown_the_one_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    store = store_of_candidates(model)
    start_rollout(store, "sentiment:2", share=1.0)
    keys = [ApiKey("operator", digest_key("secret"), frozenset({"admin"}))]
    with live_server(store, model, ServerOptions(poll_s=3600), keys=keys) as live:
        asked = ["rollout", "status", "--server", live.url, "--json"]
        monkeypatch.delenv("PROMPTSTORE_API_KEY", raising=False)
        without = CliRunner().invoke(app, asked)
        monkeypatch.setenv("PROMPTSTORE_API_KEY", "secret")
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert isinstance(without.exception, RefusedError)
    (shown,) = map(json.loads, done.stdout.splitlines())
    assert (shown["task"], shown["version"], shown["answers"]) == ("sentiment", 2, 0)


def test_a_server_that_is_not_there_is_named() -> None:
    done = CliRunner().invoke(app, ["rollout", "status", "--server", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "127.0.0.1:9" in str(done.exception)
