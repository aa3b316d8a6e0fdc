"""`promptstore ask` and `serve` as their user types them."""

import json

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.serving.options import ServerOptions
from promptstore.testing.served import live_server, store_of
from promptstore.testing.tiny_models import tiny_llama


def test_ask_labels_or_writes_as_the_task_does() -> None:
    model = tiny_llama()
    with live_server(store_of(model), model, ServerOptions(poll_s=3600)) as live:
        asked = {ref: CliRunner().invoke(app, ["ask", ref, "x", "--server", live.url, "--json"]) for ref in REFS}
        shown = CliRunner().invoke(app, ["ask", "answer", "x", "--server", live.url])
    rows = {ref: json.loads(done.stdout) for ref, done in asked.items()}
    assert set(rows["sentiment"]) == {"label", "probability", "version", "digest", "text"}
    assert set(rows["answer"]) == {"answer", "version", "digest", "text"}
    assert rows["answer"]["version"] == "answer:1"
    assert shown.stdout.split()[:3] == ["answer", "version", "text"]


def test_ask_takes_the_fields_of_one_input() -> None:
    model = tiny_llama()
    fields = ["--field", "premise=a = b", "--field", "hypothesis=c"]
    with live_server(store_of(model), model, ServerOptions(poll_s=3600)) as live:
        done = CliRunner().invoke(app, ["ask", "entailment", *fields, "--server", live.url, "--json"])
        lacking = CliRunner().invoke(app, ["ask", "entailment", *fields[:2], "--server", live.url])
    assert json.loads(done.stdout)["text"] == "premise=a = b hypothesis=c"
    assert lacking.exit_code == 1
    assert "hypothesis" in str(lacking.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs texts, or --field"),
        (["x", "--field", "a=b"], "needs texts, or --field"),
        (["--field", "a"], "expected name=value"),
    ],
)
def test_ask_says_what_it_needs(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["ask", "entailment", *arguments])
    assert done.exit_code == 1
    assert said in str(done.exception)


REFS = ("sentiment", "answer")


@pytest.mark.parametrize(
    "flag",
    [
        "--poll",
        "--staleness",
        "--max-queued",
        "--queue-timeout",
        "--max-batch",
        "--parallel-batches",
        "--max-body-bytes",
        "--max-texts",
        "--device-mib",
    ],
)
def test_a_bound_of_nothing_is_a_mistake_in_the_command(flag: str) -> None:
    done = CliRunner().invoke(app, ["serve", flag, "0"])
    assert done.exit_code == 2
    assert flag in done.stderr
