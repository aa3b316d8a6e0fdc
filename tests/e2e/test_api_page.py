"""`infra/docs/api.md`: each of its commands and lines of Python runs against a server, and prints what the page says.

The page shows a real model's answers and here a tiny one gives them: figures, digests, labels and text may differ, and
nothing else may.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from promptstore.core.task import Label
from promptstore.objects.local import LocalObjectStore
from promptstore.serving.options import ServerOptions
from promptstore.settings import Settings
from promptstore.testing.served import ANSWER, SENTIMENT, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

PAGE = Path(__file__).parents[2] / "infra" / "docs" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
# The page's tasks. What is printed of a label is its name or its text.
FEELING = replace(SENTIMENT, labels=(Label("positive", "positive"), Label("negative", "negative")))
SOURCE = replace(
    SENTIMENT,
    name="source",
    template="Text: {text}\nKind:",
    labels=(Label("tweet", "news"), Label("product", "sport"), Label("film", "science"), Label("editorial", "review")),
)
LABELS = sorted({label.name for task in (FEELING, SOURCE) for label in task.labels}, key=len, reverse=True)
BLOCKS = re.findall(r"```(console|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the page's tasks; in the commands' environment, its store."""
    model, folder = tiny_llama(), tmp_path_factory.mktemp("api")
    store = new_store(LocalObjectStore(folder / "store"))
    for task in (FEELING, SOURCE, ANSWER):
        publish_random(store, model, task, seed=1)
    publish_random(store, model, FEELING, seed=2, alias=None)
    store.attest("sentiment:2", "gate", {"verdict": "pass"})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PROMPTSTORE_STORE", (folder / "store").as_uri())
        environment.setenv("PROMPTSTORE_STATE_DIR", str(folder / "state"))
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        environment.delenv("PROMPTSTORE_API_KEY", raising=False)
        with live_server(store, model, ServerOptions(poll_s=3600)) as live:
            yield live.url


def _commands(block: str) -> list[tuple[str, str]]:
    """Each command of a console block with what the page says that it prints."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def _run(command: str, url: str) -> str:
    if command.endswith("promptstore serve"):  # it would not end
        command += " --help > /dev/null"
    httpx.post(f"{url}/admin/refresh").raise_for_status()  # see what the command before changed
    given = command.replace(ADDRESS, url)
    done = subprocess.run(["bash", "-o", "pipefail", "-c", given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def _exec(code: str, url: str) -> str:
    given, said = code.replace(ADDRESS, url), io.StringIO()
    assert given != code
    with contextlib.redirect_stdout(said):
        exec(compile(given, str(PAGE), "exec"), {})
    return said.getvalue()


def _shape(said: str) -> str:
    """What is printed, but for what depends on the model, the day and the length of a column."""
    said = re.sub(r"^text: .*$", "text: …", said, flags=re.MULTILINE)
    said = re.sub(rf"\b({'|'.join(LABELS)})\b", "<label>", said)
    said = re.sub(r"\b(?:cls|cmpl|chatcmpl)-[0-9a-f]{24}\b|\b[0-9a-f]{12}(?:[0-9a-f]{52})?\b", "<id>", said)
    said = re.sub(r"\b(sentiment|source|answer):\d+", lambda found: found[0].replace(":", "=v"), said)
    said = re.sub(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", "0", said)
    return re.sub(r"[ \r]+", " ", said).strip()


def test_every_command_of_the_page_prints_what_the_page_says(url: str) -> None:
    commands = [pair for kind, block, _ in BLOCKS if kind == "console" for pair in _commands(block)]
    assert len(commands) > 10
    for command, printed in commands:
        assert _shape(_run(command, url)) == _shape(printed), command


def test_the_python_of_the_page_prints_what_the_page_says(url: str) -> None:
    (found,) = [(code, printed) for kind, code, printed in BLOCKS if kind == "python"]
    code, printed = found
    assert printed
    assert _shape(_exec(code, url)) == _shape(printed)


def test_each_variable_of_the_page_is_a_setting() -> None:
    named = {name.lower() for name in re.findall(r"PROMPTSTORE_([A-Z_]+)", TEXT)}
    assert named
    assert named <= set(Settings.model_fields)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_a_link_of_the_page_leads_somewhere(link: str) -> None:
    path, _, heading = link.partition("#")
    target = PAGE.parent / path
    assert target.is_file()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not heading or heading in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
