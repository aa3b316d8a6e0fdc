"""A task as a TOML file: read, scaffolded."""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, cast, get_args

from promptstore.core.name import check_name
from promptstore.core.task import DataSource, Label, TaskKind, TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError

DEFAULT_METRIC: Mapping[str, str] = {"classification": "accuracy", "generation": "exact_match"}
TEXT_KEYS = ("name", "kind", "template", "target_field", "metric", "placement")
NUMBER_KEYS = ("max_input_tokens", "max_target_tokens")
TABLE_KEYS = ("labels", "data", "tuning")
DATA_KEYS = ("train", "validation")


def read_task(path: Path) -> TaskSpec:
    """The task in `path`. Relative data paths are taken from the file's folder.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: not TOML, or a key that is unknown, missing or wrong; names file and key.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no task file {path}; `promptstore task new NAME` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"task file {path} cannot be read: {error}") from error
    return parse_task(text, str(path), folder=path.parent)


def parse_task(text: str, what: str, *, folder: Path | None = None) -> TaskSpec:
    """The task in TOML `text`; `what` names it in errors. folder: where relative data paths start.

    Labels keep the file's order. Raises as `read_task`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{what} is not TOML: {error}") from error
    _check_keys(values, (*TEXT_KEYS, *NUMBER_KEYS, *TABLE_KEYS), what)
    kind = _text(values, "kind", what) if "kind" in values else "classification"
    given: dict[str, Any] = {
        "name": _text(values, "name", what),
        "kind": cast("TaskKind", kind),
        "template": _text(values, "template", what),
        "labels": tuple(_label(name, said, what) for name, said in _table(values, "labels", what).items()),
        "data": _data(_table(values, "data", what), what, folder),
        "tuning": _table(values, "tuning", what),
        "metric": DEFAULT_METRIC.get(kind, ""),
    }
    given |= {key: _text(values, key, what) for key in ("target_field", "metric", "placement") if key in values}
    given |= {key: _number(values, key, what) for key in NUMBER_KEYS if key in values}
    try:
        return TaskSpec(**given)
    except InvalidInputError as error:
        raise InvalidInputError(f"{what}: {error}") from error


def without_local_paths(task: TaskSpec) -> TaskSpec:
    """`task` as it is published: of a data file on this machine its name alone, not the folder."""
    return replace(task, data=DataSource(_public_name(task.data.train), _public_name(task.data.validation)))


def _public_name(source: str) -> str:
    return source if _is_remote(source) else PurePath(source).name


def _is_remote(source: str) -> bool:
    return "://" in source or source.startswith("hf:")


def _data(table: Mapping[str, Any], what: str, folder: Path | None) -> DataSource:
    _check_keys(table, DATA_KEYS, f"{what}: table [data]")
    train, validation = (_text(table, key, f"{what}: table [data]") for key in DATA_KEYS)
    return DataSource(_resolved(train, folder), _resolved(validation, folder))


def _resolved(source: str, folder: Path | None) -> str:
    if folder is None or _is_remote(source):
        return source
    return str((folder / Path(source).expanduser()).absolute())


def _label(name: str, said: Any, what: str) -> Label:
    if not isinstance(said, str):
        raise InvalidInputError(f"{what}: labels.{name} is {said!r}, expected the text that the model says for it")
    return Label(name, said)


def _check_keys(values: Mapping[str, Any], known: Collection[str], what: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
            raise InvalidInputError(f"{what}: unknown key {key!r}; {advice}")


def _text(values: Mapping[str, Any], key: str, what: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        found = "missing" if key not in values else repr(value)
        raise InvalidInputError(f"{what}: {key} is {found}, expected text")
    return value


def _number(values: Mapping[str, Any], key: str, what: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"{what}: {key} is {value!r}, expected a whole number")
    return value


def _table(values: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what}: {key} is {value!r}, expected a table [{key}]")
    return value


def new_task_text(name: str, kind: str) -> str:
    """A task file with every key explained, which parses as it stands.

    Raises:
        InvalidInputError: `name` or `kind` is not valid.
    """
    check_name(name, "task name")
    if kind not in get_args(TaskKind):
        raise InvalidInputError(f"kind is {kind!r}, expected one of {', '.join(get_args(TaskKind))}")
    return SCAFFOLDS[kind].replace("NAME", name)


_CLASSIFICATION = '''\
# A task of promptstore. `promptstore task check NAME.toml` explains what is wrong with it.

name = "NAME"             # a-z, 0-9, '-', '_' and '.'
kind = "classification"   # or "generation"

# What the model reads. {text} is a column of the data; use as many columns as the task needs.
# End where the answer should begin. {{ and }} are literal braces.
template = """
Review: {text}
Sentiment:"""

target_field = "label"    # the column with the label
metric = "accuracy"       # decides which step is best: accuracy, macro_f1, f1 of the first label, matthews or mrr
max_input_tokens = 256    # longer inputs lose the end of their longest column, never template text

# Label in the data = what the model says for it. What is said must begin with a different token for every label.
[labels]
positive = "positive"
negative = "negative"

# .jsonl, .csv or .parquet files (paths from this file's folder), s3://bucket/key, or hf:<data set>[:<config>]/<split>
[data]
train = "NAME.train.jsonl"
validation = "NAME.validation.jsonl"

# Overrides of the defaults of tuning; leave empty at first.
[tuning]
'''

_GENERATION = '''\
# A task of promptstore. `promptstore task check NAME.toml` explains what is wrong with it.

name = "NAME"             # a-z, 0-9, '-', '_' and '.'
kind = "generation"       # or "classification"

# What the model reads. {question} is a column of the data; use as many columns as the task needs.
# End where the answer should begin. {{ and }} are literal braces.
template = """
Question: {question}
Answer:"""

target_field = "answer"   # the column with the text to generate
metric = "exact_match"    # decides which step is best: exact_match or token_f1
max_input_tokens = 256    # longer inputs lose the end of their longest column, never template text
max_target_tokens = 32    # longer answers are cut

# .jsonl, .csv or .parquet files (paths from this file's folder), s3://bucket/key, or hf:<data set>[:<config>]/<split>
[data]
train = "NAME.train.jsonl"
validation = "NAME.validation.jsonl"

# Overrides of the defaults of tuning; leave empty at first.
[tuning]
'''

SCAFFOLDS: Mapping[str, str] = {"classification": _CLASSIFICATION, "generation": _GENERATION}
