"""Verifying a log that is right in itself against what this machine has seen of it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.core.commit import Commit
from promptstore.errors import CorruptError
from promptstore.objects.local import LocalObjectStore
from promptstore.store.layout import COMMITS, commit_key
from promptstore.store.memory import HeadMemory
from promptstore.store.objects import ObjectStore
from promptstore.store.verify import verify
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

LAST = 3


def delete_last(objects: ObjectStore) -> None:
    objects.delete(commit_key(LAST))


def rewrite_last(objects: ObjectStore) -> None:
    commit = Commit.from_bytes(objects.get(commit_key(LAST)), LAST)
    objects.put(commit_key(LAST), replace(commit, actor="eve").to_bytes())


def rewrite_last_and_go_on(objects: ObjectStore) -> None:
    """A longer log than the one seen, with another commit in it."""
    delete_last(objects)
    for seed in range(LAST, LAST + 3):
        sample_store(objects, actor="eve").publish(sample_prompt(seed), sample_task())


tampered = pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (delete_last, "ends at commit 2, but commit 3 was seen"),
        (rewrite_last, "commit 3 is .* but was"),
        (rewrite_last_and_go_on, "commit 3 is .* but was"),
    ],
    ids=["deleted", "rewritten", "forked"],
)


@pytest.fixture
def memory(tmp_path: Path) -> HeadMemory:
    return HeadMemory(tmp_path / "state" / "heads")


@pytest.fixture
def objects(tmp_path: Path, memory: HeadMemory) -> ObjectStore:
    """A store whose last commit `memory` has seen."""
    objects = LocalObjectStore(tmp_path / "store")
    for seed in range(LAST):
        sample_store(objects, memory=memory).publish(sample_prompt(seed), sample_task())
    return objects


@tampered
def test_a_log_that_went_back_or_was_rewritten_is_not_clean_where_it_was_seen(
    objects: ObjectStore, memory: HeadMemory, tamper: Callable[[ObjectStore], None], said: str
) -> None:
    assert verify(objects, memory=memory).is_clean
    tamper(objects)
    assert verify(objects).is_clean, "the log itself is to be consistent"
    for _ in range(2):  # a look changes nothing of what was seen
        (problem,) = verify(objects, memory=memory).problems
        assert problem.key == COMMITS
        assert re.search(said, problem.message)
        assert not problem.is_movable


def test_a_log_that_went_on_since_it_was_seen_is_clean(objects: ObjectStore, memory: HeadMemory) -> None:
    sample_store(objects).publish(sample_prompt(LAST), sample_task())
    assert verify(objects, memory=memory).is_clean


@tampered
def test_the_command_verifies_against_what_this_machine_has_seen(
    objects: ObjectStore,
    tamper: Callable[[ObjectStore], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMPTSTORE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PROMPTSTORE_STATE_DIR", str(tmp_path / "state"))
    command = ["verify", "--repair", "--json"]
    assert CliRunner().invoke(app, command).exit_code == 0
    tamper(objects)
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, CorruptError)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (problem,) = [row for row in rows if row["finding"] == "problem"]
    assert re.search(said, problem["message"])
    monkeypatch.setenv("PROMPTSTORE_STATE_DIR", str(tmp_path / "another machine"))
    assert CliRunner().invoke(app, command).exit_code == 0
