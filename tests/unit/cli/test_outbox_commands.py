"""The outbox from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.errors import InvalidInputError
from promptstore.objects.local import LocalObjectStore
from promptstore.testing.receiver import receiver
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

RUN = ["outbox", "run", "--no-follow", "--url"]


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with two versions, and a file with a secret."""
    monkeypatch.setenv("PROMPTSTORE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PROMPTSTORE_STATE_DIR", str(tmp_path / "state"))
    store = sample_store(LocalObjectStore(tmp_path / "store"))
    for seed in range(2):
        store.publish(sample_prompt(seed), sample_task())
    (tmp_path / "secret").write_text(CliRunner().invoke(app, ["outbox", "secret"]).stdout)
    return str(tmp_path / "secret")


def test_status_says_how_far_an_outbox_came(secret: str) -> None:
    with receiver() as hook:
        done = CliRunner().invoke(app, [*RUN, hook.url, "--secret-file", secret])
    assert done.exit_code == 0, done.output
    assert len(hook.received) == 2
    shown = CliRunner().invoke(app, ["outbox", "status", "--json"])
    found = json.loads(shown.stdout)
    assert (found["outbox"], found["commit"], found["behind"], found["stuck"]) == ("webhook", 2, 0, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is no webhook secret"),
        (["--secret-file", "nowhere"], "--secret-file nowhere cannot be read"),
        (["--secret-file", "GIVEN", "--only", "promote"], "--only promote: operations are publish, move_alias"),
        (["--secret-file", "GIVEN", "--name", "a/b"], "outbox name 'a/b' is not valid"),
    ],
)
def test_a_mistake_is_named_before_anything_is_sent(secret: str, options: list[str], said: str) -> None:
    given = [secret if option == "GIVEN" else option for option in options]
    with receiver() as hook:
        done = CliRunner().invoke(app, [*RUN, hook.url, *given])
    assert isinstance(done.exception, InvalidInputError)
    assert said in str(done.exception)
    assert hook.received == []
