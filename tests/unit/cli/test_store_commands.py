"""The store's commands, as processes would run them: arguments in, lines, errors and exit codes out."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

import promptstore
from promptstore.cli.app import app
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.wiring import open_store

WIDTH = 8
TASK = TaskSpec(
    name="sst2",
    kind="classification",
    template="Review: {text}\nSentiment:",
    data=DataSource("train.jsonl", "validation.jsonl"),
    labels=(Label("negative", " bad"), Label("positive", " good")),
)
MODEL = BaseModelFingerprint("LlamaForCausalLM", WIDTH, "a" * 64, "b" * 64, "tiny")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMPTSTORE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PROMPTSTORE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PROMPTSTORE_ACTOR", "ada")
    monkeypatch.setenv("PROMPTSTORE_STORE", str(tmp_path / "store"))
    return tmp_path


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "promptstore", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def publish(seed: int) -> str:
    prompt = SoftPrompt(np.random.default_rng(seed).normal(size=(4, WIDTH)).astype(np.float32), MODEL)
    return open_store().publish(prompt, TASK, metrics={"accuracy": 0.5 + seed / 100}).digest


def test_a_version_published_in_one_process_is_listed_promoted_and_rolled_back_in_others(folder: Path) -> None:
    first, second = publish(1), publish(2)
    assert run("promote", "sst2:1", "--force", "-m", "first").returncode == 0
    assert run("promote", "sst2:2", "--force", "-m", "better", "--expected", "1").returncode == 0
    listed = [json.loads(line) for line in run("list", "sst2", "--json").stdout.splitlines()]
    assert [each["digest"] for each in listed] == [first, second]
    assert [each["aliases"] for each in listed] == [[], ["production"]]
    assert "sst2@production -> sst2:1" in run("rollback", "sst2", "-m", "worse on Mondays").stdout
    moves = [json.loads(line) for line in run("history", "--json").stdout.splitlines()]
    assert [(each["before"], each["after"], each["reason"]) for each in moves] == [
        (None, 1, "first"),
        (1, 2, "better"),
        (2, 1, "worse on Mondays"),
    ]
    assert {each["by"] for each in moves} == {"ada"}


def test_versions_are_combined_into_one_and_shown_as_such(folder: Path) -> None:
    publish(1)
    publish(2)
    (made,) = [
        json.loads(line) for line in run("combine", "sst2:1", "sst2:2", "--by", "vote", "--json").stdout.splitlines()
    ]
    assert (made["version"], made["members"]) == ("sst2:3", ["sst2:1", "sst2:2"])
    (shown,) = [json.loads(line) for line in run("show", "sst2:3", "--json").stdout.splitlines()]
    assert shown["ensemble"] == {"members": 2, "combination": "vote"}
    refused = run("combine", "sst2:1", "sst2:2", "--by", "median")
    assert (refused.returncode, "expected one of mean, vote" in refused.stderr) == (1, True)


def test_a_key_is_made_listed_and_known_by_the_same_id(folder: Path) -> None:
    (made,) = [json.loads(line) for line in run("keys", "new", "ada", "--json").stdout.splitlines()]
    (listed,) = [json.loads(line) for line in run("keys", "list", "--json").stdout.splitlines()]
    assert (listed["name"], listed["key"], listed["public"]) == ("ada", made["key"], made["public"])
    assert run("keys", "list", "--folder", str(folder / "none")).stdout == ""


def test_at_names_what_an_alias_pointed_to_then(folder: Path) -> None:
    publish(1)
    publish(2)
    store = open_store()
    store.promote("sst2:1", reason="first", force=True)
    moment = store.refresh().at
    store.promote("sst2:2", reason="second", force=True)
    (then,) = [json.loads(line) for line in run("at", moment, "--json").stdout.splitlines()]
    assert then["version"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "nobody"), 1, "task 'nobody' is not in this store"),
        (("show", "sst2:9"), 1, "sst2:9 does not exist"),
        (("show", "sst2@canary"), 1, "no alias 'canary'"),
        (("show", "SST2"), 1, "is not valid"),
        (("promote", "sst2:1"), 1, "no passing gate"),
        (("promote", "sst2:1", "--force"), 1, "--force needs a reason"),
        (("list", "--store", "ftp://x"), 1, "unknown kind 'ftp'"),
        (("list", "--store", "nowhere"), 1, "holds no store"),
        (("at", "yesterday"), 1, "not ISO 8601"),
        (("at", "9999-12-31T23:59:59-05:00"), 1, "not ISO 8601"),
        (("watch", "--no-follow", "--cursor", "a/b"), 1, "cursor name"),
        (("keys", "new", "ada", "--folder", "/dev/null"), 1, "/dev/null"),
        (("demo", "--json", "no/such/folder/facts.json"), 1, "make it first"),
        (("resend",), 1, "there is no MLflow to tell"),
        (("promote",), 2, "Missing argument"),
        (("prmote", "a"), 2, "No such command"),
    ],
)
def test_bad_input_gets_one_message_and_the_right_exit_code(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    publish(1)
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    for part, each in group.commands.items():
        full = f"{name} {part}".strip()
        yield from commands(each, full) if hasattr(each, "commands") else [(full, each)]


def test_every_command_takes_json() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) > 25
    assert [name for name, each in found.items() if not any("--json" in option.opts for option in each.params)] == []


def test_every_command_that_a_message_names_exists() -> None:
    found = {name for name, _ in commands(typer.main.get_command(app))}
    groups = {name.split()[0] for name in found if " " in name}
    package = Path(promptstore.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in (*package.rglob("*.py"), *package.glob("*.md"))]
    named = {match for text in texts for match in re.findall(r"`promptstore ([a-z-]+(?: [a-z-]+)?)", text)}
    assert len(named) > 10
    unknown = [name for name in named if (name if name.split()[0] in groups else name.split()[0]) not in found]
    assert unknown == []


def test_times_are_read_as_they_are_printed(folder: Path) -> None:
    publish(1)
    published = open_store().resolve("sst2:1").at
    assert run("catalog", "sync").returncode == 0
    found = run("catalog", "search", "--since", published, "--json")
    (row,) = [json.loads(line) for line in found.stdout.splitlines()]
    assert row["digest"] == open_store().resolve("sst2:1").digest
    assert run("catalog", "search", "--until", published, "--json").stdout == ""


def test_a_file_of_this_machine_that_cannot_be_written_is_one_message(folder: Path) -> None:
    publish(1)
    (folder / "state" / "cursors").write_text("a file where a folder should be")
    done = run("watch", "--no-follow", "--cursor", "mine")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "cursors" in done.stderr
    assert done.stderr.count("\n") == 1


def test_importing_the_package_pulls_in_no_heavy_library() -> None:
    script = "import sys, promptstore; print([m for m in ('torch', 'boto3', 'numpy', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_rollout_is_started_shown_aborted_and_finished_by_other_processes(folder: Path) -> None:
    publish(1), publish(2)
    assert run("promote", "sst2:1", "--force", "-m", "first").returncode == 0
    refused = run("rollout", "start", "sst2:2", "--share", "0.2")
    assert (refused.returncode, "no passing gate" in refused.stderr) == (1, True)
    assert run("rollout", "start", "sst2:2", "--force").returncode == 1
    started = run("rollout", "start", "sst2:2", "--shadow", "--min-agreement", "0.9", "-m", "try it")
    assert started.stdout == "sst2:2 is on trial in the shadow of sst2@production\n"
    (shown,) = [json.loads(line) for line in run("rollout", "status", "--json").stdout.splitlines()]
    assert (shown["number"], shown["mode"], shown["bounds"]["min_agreement"]) == (2, "shadow", 0.9)
    assert run("rollout", "abort", "sst2", "-m", "not now").returncode == 0
    assert run("rollout", "status", "--json").stdout == ""
    over = run("rollout", "finish", "sst2")
    assert (over.returncode, "`promptstore rollout start`" in over.stderr) == (1, True)
    assert run("rollout", "start", "sst2:2", "--share", "1", "--force", "-m", "sure").returncode == 0
    assert "sst2@production -> sst2:2" in run("rollout", "finish", "sst2", "--force", "-m", "good").stdout
