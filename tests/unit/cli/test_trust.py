"""Signing and trust as the two settings wire them, in `open_store` and in commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.errors import CorruptError, InvalidInputError, UntrustedError
from promptstore.objects.local import LocalObjectStore
from promptstore.store.layout import COMMITS
from promptstore.store.trust import Signer, generate_key
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task
from promptstore.wiring import open_store

PROMOTE = ["promote", "sst2:1", "--force", "-m", "first"]


def run(*arguments: str) -> list[Any]:
    """The rows that a command prints; what it raises, `main` would print as one line."""
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a store is that Ada's key signed, with one version; her key signs, and hers alone is trusted."""
    for name, place in (("STORE", "store"), ("STATE_DIR", "state"), ("CACHE_DIR", "cache"), ("TRUSTED_KEYS", "keys")):
        monkeypatch.setenv(f"PROMPTSTORE_{name}", str(tmp_path / place))
    monkeypatch.setenv("PROMPTSTORE_SIGNING_KEY", str(tmp_path / "keys" / "ada.key"))
    run("keys", "new", "ada", "--folder", str(tmp_path / "keys"))
    open_store().publish(sample_prompt(1), sample_task())
    return tmp_path


def commits(folder: Path) -> int:
    return len(list(LocalObjectStore(folder / "store").list(COMMITS)))


def eve_publishes(folder: Path, signer: Signer | None) -> None:
    store = sample_store(LocalObjectStore(folder / "store"), actor="eve", signer=signer)
    store.publish(sample_prompt(2), sample_task())


def test_what_the_settings_sign_is_accepted_by_who_trusts_the_key(folder: Path) -> None:
    run(*PROMOTE)
    (ada,) = run("keys", "list")
    signers = [[each.key for each in commit.signatures] for commit in open_store().ledger.commits()]
    assert signers == [[ada["key"]], [ada["key"]]]
    (listed,) = run("list", "sst2")
    assert listed["aliases"] == ["production"]
    assert run("verify") == []


@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "foreign"])
def test_a_commit_that_no_trusted_key_signed_is_refused_by_name(folder: Path, is_signed: bool) -> None:
    stranger = generate_key(folder / "eve", "eve")
    eve_publishes(folder, Signer.load(folder / "eve" / "eve.key") if is_signed else None)
    said = rf"commit 2 \(eve, .*\) is {f'signed only by {stranger[:12]}' if is_signed else 'not signed'}; trusted keys"
    with pytest.raises(UntrustedError, match=said):
        open_store()
    for command in (["list"], PROMOTE, ["rollback", "sst2"], ["gc", "--delete"], ["catalog", "sync"]):
        with pytest.raises(UntrustedError, match=said):
            run(*command)
    with pytest.raises(CorruptError, match="1 problem"):
        run("verify")
    assert commits(folder) == 2


def test_a_writer_whose_own_key_is_not_trusted_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = generate_key(folder / "eve", "eve")
    monkeypatch.setenv("PROMPTSTORE_SIGNING_KEY", str(folder / "eve" / "eve.key"))
    with pytest.raises(UntrustedError, match=f"signed only by {stranger[:12]}"):
        run(*PROMOTE)
    assert commits(folder) == 1


def test_a_writer_without_a_key_changes_nothing_where_keys_are_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMPTSTORE_SIGNING_KEY")
    assert [each["version"] for each in run("list", "sst2")] == ["sst2:1"]
    with pytest.raises(UntrustedError, match="is not signed"):
        run(*PROMOTE)
    assert commits(folder) == 1


def test_a_signing_key_without_trusted_keys_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTSTORE_TRUSTED_KEYS")
    for command in (["list"], PROMOTE):
        with pytest.raises(InvalidInputError, match="PROMPTSTORE_SIGNING_KEY is set without PROMPTSTORE_TRUSTED_KEYS"):
            run(*command)
    assert commits(folder) == 1
