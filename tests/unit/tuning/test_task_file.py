"""A task file is read whole or refused with file and key."""

from pathlib import Path

import pytest

from promptstore.core.task import Label
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.metrics import main_metric
from promptstore.tuning.task_file import new_task_text, parse_task, read_task, without_local_paths

GOOD = '''
name = "sentiment"
template = """
Review: {text}
Sentiment:"""
max_input_tokens = 64

[labels]
positive = "good"
negative = "bad"

[data]
train = "train.jsonl"
validation = "s3://bucket/validation.jsonl"

[tuning]
steps = 10
'''


def test_a_task_file_says_what_the_task_is(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(GOOD)

    task = read_task(tmp_path / "task.toml")

    assert (task.name, task.kind, task.metric, task.max_input_tokens) == ("sentiment", "classification", "accuracy", 64)
    assert task.template == "Review: {text}\nSentiment:"
    assert task.labels == (Label("positive", "good"), Label("negative", "bad")), "in the order of the file"
    assert task.tuning == {"steps": 10}


def test_data_paths_start_at_the_files_folder_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "task.toml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)

    task = read_task(Path("tasks/task.toml"))

    assert task.data.train == str(folder / "train.jsonl")
    assert task.data.validation == "s3://bucket/validation.jsonl"


def test_what_is_published_of_a_local_path_is_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(GOOD)

    task = without_local_paths(read_task(tmp_path / "task.toml"))

    assert (task.data.train, task.data.validation) == ("train.jsonl", "s3://bucket/validation.jsonl")


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_scaffold_reads_back_as_a_task_that_can_be_tuned(kind: str) -> None:
    task = parse_task(new_task_text("my-task", kind), "my-task.toml")

    assert (task.name, task.kind) == ("my-task", kind)
    assert task.data.train == "my-task.train.jsonl"
    assert main_metric(task.kind, task.metric) == task.metric
    TuneConfig.from_mapping(task.tuning)


def test_a_scaffold_of_a_bad_name_or_kind_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="task name 'My Task'"):
        new_task_text("My Task", "classification")
    with pytest.raises(InvalidInputError, match="kind is 'regression', expected one of classification, generation"):
        new_task_text("my-task", "regression")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("template =", "tempalte =", "unknown key 'tempalte'; did you mean 'template'?"),
        ("[tuning]", "[banana]", "unknown key 'banana'; known keys are name, kind, template"),
        ("validation =", "valid =", "table [data]: unknown key 'valid'; did you mean 'validation'?"),
        ('name = "sentiment"', "", "name is missing, expected text"),
        ('name = "sentiment"', "name = 7", "name is 7, expected text"),
        ('name = "sentiment"', 'name = "A B"', "task name 'A B' is not valid"),
        ('name = "sentiment"', 'name = "s"\nkind = "regression"', "kind is 'regression'"),
        ("max_input_tokens = 64", 'max_input_tokens = "64"', "max_input_tokens is '64', expected a whole number"),
        ("max_input_tokens = 64", "max_input_tokens = true", "max_input_tokens is True, expected a whole number"),
        ("max_input_tokens = 64", "max_input_tokens = 0", "max_input_tokens and max_target_tokens must be at least 1"),
        ('negative = "bad"', "negative = 0", "labels.negative is 0, expected the text that the model says"),
        ('negative = "bad"', 'negative = "good"', "label verbalisers must be distinct"),
        ('negative = "bad"', "", "needs at least two labels"),
        ('train = "train.jsonl"', "", "table [data]: train is missing, expected text"),
        ("{text}", "text", "the template has no {field}"),
        ("{text}", "{text", "the template is malformed"),
        ("[labels]", "labels = 3\n[other]", "unknown key 'other'"),
        ("steps = 10", "steps = ", "is not TOML"),
    ],
)
def test_a_mistake_is_named_by_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "task.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))

    with pytest.raises(InvalidInputError) as caught:
        read_task(path)

    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert str(caught.value).count(str(path)) == 1


def test_a_file_that_does_not_exist_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="`promptstore task new NAME` writes one"):
        read_task(tmp_path / "task.toml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidInputError, match=r"task\.toml cannot be read"):
        read_task(tmp_path / "task.toml")
