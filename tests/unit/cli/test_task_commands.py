"""`promptstore task new` and `task check` as processes would run them: lines, errors and exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from promptstore.testing.tiny_models import tiny_llama

TRAIN = [("good", "positive"), ("bad", "negative")]
VALIDATION = [("fine", "positive"), ("poor", "negative")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "promptstore", "task", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write(name: str, rows: list[tuple[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def scaffold(name: str, *, train: list[tuple[str, str]] = TRAIN, validation: list[tuple[str, str]] = VALIDATION) -> str:
    """A task as `task new` writes it, and its data."""
    file = json.loads(run("new", name, "--json").stdout)["path"]
    write(f"{name}.train.jsonl", train)
    write(f"{name}.validation.jsonl", validation)
    return str(file)


def checked(*files: str, code: int) -> list[dict[str, Any]]:
    done = run("check", *files, "--without-model", "--json")
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_new_task_with_its_data_is_ready_to_tune(folder: Path) -> None:
    made = run("new", "film")
    assert (made.returncode, made.stdout.strip()) == (
        0,
        "film.toml written; fill it in, then: promptstore task check film.toml",
    )
    write("film.train.jsonl", TRAIN)
    write("film.validation.jsonl", VALIDATION)
    done = run("check", "film.toml", "--without-model")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 task file(s) checked: ready to tune" in done.stderr


def test_a_task_file_that_exists_is_not_touched(folder: Path) -> None:
    Path("film.toml").write_text("mine")
    done = run("new", "film")
    assert (done.returncode, done.stdout) == (1, "")
    assert "film.toml exists; it was not touched" in done.stderr
    assert Path("film.toml").read_text() == "mine"
    assert json.loads(run("new", "film", "--kind", "generation", "--path", "b.toml", "--json").stdout) == {
        "path": "b.toml"
    }
    assert 'kind = "generation"' in Path("b.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("new", "No Name"), 1), (("new", "film", "--kind", "poem"), 1), (("new",), 2), (("check",), 2)],
)
def test_a_mistake_in_the_command_writes_nothing(folder: Path, arguments: tuple[str, ...], code: int) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert "rror" in done.stderr
    assert list(folder.iterdir()) == []


def test_a_field_that_no_row_has_is_found(folder: Path) -> None:
    file = scaffold("film")
    Path(file).write_text(Path(file).read_text().replace("Review: {text}", "Review: {review}"))
    found = checked(file, code=1)
    assert [(each["task"], each["severity"], each["split"], each["row"], each["field"]) for each in found] == [
        ("film", "error", "train", None, "review"),
        ("film", "error", "validation", None, "review"),
    ]


def test_a_label_that_is_not_in_the_list_is_found_with_its_row(folder: Path) -> None:
    file = scaffold("film", validation=[*VALIDATION, ("so so", "neutral")])
    (found,) = checked(file, code=1)
    assert (found["split"], found["row"], found["field"]) == ("validation", 3, "label")
    assert "label 'neutral' is not among the task's labels positive, negative" in found["message"]
    shown = run("check", file, "--without-model")
    assert shown.returncode == 1
    assert shown.stdout.split()[:6] == ["task", "severity", "split", "row", "field", "message"]
    assert "error: 1 of 1 findings must be mended before tuning" in shown.stderr


def test_a_leak_is_found_with_the_fields_that_are_the_same(folder: Path) -> None:
    file = scaffold("film", validation=[*VALIDATION, (" Good", "positive")])
    (found,) = checked(file, code=1)
    assert (found["split"], found["row"], found["field"]) == ("validation", 3, "text")
    assert "the same input is in the training rows (row 1)" in found["message"]
    text = Path(file).read_text()
    Path(file).write_text(text.replace("Review: {text}", "Review: {text} by {label}"))
    assert [each["field"] for each in checked(file, code=1)] == ["text, label"]


def test_a_warning_is_told_and_is_no_error(folder: Path) -> None:
    (found,) = checked(scaffold("film", validation=VALIDATION[:1]), code=0)
    assert (found["severity"], found["message"]) == ("warning", "no row has label 'negative'")


def test_a_file_that_cannot_be_read_hides_nothing_of_the_others(folder: Path) -> None:
    before = scaffold("before", validation=[*VALIDATION, ("so so", "neutral")])
    Path("broken.toml").write_text("name = ")
    dataless = json.loads(run("new", "dataless", "--json").stdout)["path"]
    after = scaffold("after", validation=VALIDATION[:1])
    found = checked(before, "broken.toml", "absent.toml", dataless, after, code=1)
    assert [(each["task"], each["severity"]) for each in found] == [
        ("before", "error"),
        ("broken.toml", "error"),
        ("absent.toml", "error"),
        ("dataless.toml", "error"),
        ("after", "warning"),
    ]
    said = [each["message"] for each in found[1:4]]
    assert "is not TOML" in said[0]
    assert "there is no task file absent.toml" in said[1]
    assert "there is no data file" in said[2]


def test_with_a_model_its_tokenizer_is_asked_too(folder: Path) -> None:
    model = tiny_llama()
    model.network.save_pretrained("model")
    model.tokenizer.save_pretrained("model")
    file = scaffold("film")
    text = Path(file).read_text().replace('positive = "positive"', 'positive = "good film"')
    Path(file).write_text(text.replace('negative = "negative"', 'negative = "good grief"'))
    done = run("check", file, "--model", "model", "--json")
    assert done.returncode == 1, done.stderr
    (found,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (found["field"], "begin with the same token" in found["message"]) == ("labels", True)
