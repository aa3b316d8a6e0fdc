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


REFS = ("sentiment", "answer")


@pytest.mark.parametrize(
    "flag", ["--max-queued", "--queue-timeout", "--max-batch", "--max-body-bytes", "--max-texts", "--device-mib"]
)
def test_a_bound_of_nothing_is_a_mistake_in_the_command(flag: str) -> None:
    done = CliRunner().invoke(app, ["serve", flag, "0"])
    assert done.exit_code == 2
    assert flag in done.stderr
