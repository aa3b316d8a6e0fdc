"""Whom a server process lets in: what its key file says, and where it has none, what `PROMPTSTORE_API_KEY` says."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.loopback import free_port
from promptstore.objects.local import LocalObjectStore
from promptstore.testing.serve_process import ServeProcess, save_model, serve_process
from promptstore.testing.served import SENTIMENT, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

OPERATOR = {"PROMPTSTORE_API_KEY": "what-an-operator-asks-with"}


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    model = save_model(tiny_llama(), tmp_path)
    publish_random(new_store(LocalObjectStore(tmp_path / "store")), model, SENTIMENT, seed=1)
    return (tmp_path / "store").as_uri()


def status(server: ServeProcess, path: str, key: str | None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return server.client.get(path, headers=headers).status_code


def test_with_a_key_file_the_file_alone_says_who_may_ask(tmp_path: Path, store_url: str) -> None:
    """The file begins as taking back the last key leaves it."""
    path = tmp_path / "keys.toml"
    path.write_text("# nobody\n")
    arguments = ("--api-keys", str(path))
    with serve_process(tmp_path, store_url, *arguments, port=free_port(), environment=OPERATOR) as server:
        server.wait_until_ready()
        shown = (OPERATOR["PROMPTSTORE_API_KEY"], None)
        asked = [status(server, route, key) for key in shown for route in ("/v1/models", "/metrics")]
        assert asked == [401] * 4
        log = server.log.read_text()
        assert "PROMPTSTORE_API_KEY lets nobody in here" in log
        assert f"key file {path} holds no key" in log
        made = CliRunner().invoke(app, ["keys", "api", "app", "--scope", "infer", "--file", str(path)])
        deadline = time.monotonic() + 20
        while status(server, "/v1/models", made.stdout.strip()) != 200:
            assert time.monotonic() < deadline, "the key was not taken"
            time.sleep(0.1)
        assert status(server, "/metrics", OPERATOR["PROMPTSTORE_API_KEY"]) == 401


def test_without_a_key_file_a_server_asks_for_the_key_of_its_settings(tmp_path: Path, store_url: str) -> None:
    with serve_process(tmp_path, store_url, port=free_port(), environment=OPERATOR) as server:
        server.wait_until_ready()
        shown = (OPERATOR["PROMPTSTORE_API_KEY"], "another", None)
        assert [status(server, "/metrics", key) for key in shown] == [200, 401, 401]
