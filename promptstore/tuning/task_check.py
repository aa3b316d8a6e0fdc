"""What is wrong with a task and its data, row and field named."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.encoding import TaskEncoder
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.metrics import main_metric
from promptstore.tuning.rows import Row, Rows

SHOWN_ROWS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend (`error`) or to know (`warning`). split, row, field: where, as far as it has a place;
    fields that are wrong together are one text, with commas.
    """

    severity: Literal["error", "warning"]
    message: str
    split: str | None = None
    row: int | None = None
    field: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "split": self.split,
            "row": self.row,
            "field": self.field,
            "message": self.message,
        }


def check_task(task: TaskSpec, splits: Mapping[str, Rows], encoder: TaskEncoder | None = None) -> list[Finding]:
    """Everything wrong with `task` and its rows; no error among the findings means that it can be tuned.

    splits: `train` and `validation`. encoder: without one, what depends on the model's tokenizer is not checked.
    """
    findings = list(_check_settings(task))
    for split, rows in splits.items():
        if not rows:
            findings.append(Finding("error", f"{rows.source} has no rows", split))
            continue
        findings += _check_fields(task, split, rows)
        if task.kind == "classification":
            findings += _check_labels(task, split, rows)
        else:
            findings += _check_targets(task, split, rows)
    findings += _check_leak(task, splits)
    if encoder is not None:
        findings += _check_model(task, splits, encoder, has_errors=any(each.severity == "error" for each in findings))
    return findings


def _check_settings(task: TaskSpec) -> Iterator[Finding]:
    checks: Mapping[str, Callable[[], object]] = {
        "metric": lambda: main_metric(task.kind, task.metric),
        "tuning": lambda: TuneConfig.from_mapping(task.tuning),
    }
    for field, check in checks.items():
        try:
            check()
        except InvalidInputError as error:
            yield Finding("error", str(error), field=field)


def _check_fields(task: TaskSpec, split: str, rows: Rows) -> Iterator[Finding]:
    """A field that no row has is a mistake in the task; one that some rows lack, a mistake in the data."""
    columns = sorted({name for row in rows for name in row})
    uses = dict.fromkeys(task.template_fields, "the template uses it") | {task.target_field: "it is the target_field"}
    for field, use in uses.items():
        if field not in columns:
            message = f"no row has field {field!r}, but {use}; the rows have {', '.join(columns)}"
            yield Finding("error", message, split, None, field)
            continue
        yield from _each_row(split, rows, field, lambda row, field=field: _missing(row, field))  # type: ignore[misc]


def _missing(row: Row, field: str) -> str | None:
    return None if field in row else f"field {field!r} is missing"


def _check_labels(task: TaskSpec, split: str, rows: Rows) -> Iterator[Finding]:
    field = task.target_field

    def unknown(row: Row) -> str | None:
        label = row.get(field)
        if label is None or label in task.label_names:
            return None
        return f"label {label!r} is not among the task's labels {', '.join(task.label_names)}"

    yield from _each_row(split, rows, field, unknown)
    counts = Counter(row[field] for row in rows if row.get(field) in task.label_names)
    if len(counts) == 1 and split == "train":
        only = next(iter(counts))
        yield Finding("error", f"every row has label {only!r}; a task needs rows of at least two", split, None, field)
    elif unused := [name for name in task.label_names if name not in counts]:
        yield Finding("warning", f"no row has label {', '.join(map(repr, unused))}", split, None, field)


def _check_targets(task: TaskSpec, split: str, rows: Rows) -> Iterator[Finding]:
    field = task.target_field

    def empty(row: Row) -> str | None:
        return "the text to generate is empty" if field in row and not row[field].strip() else None

    yield from _each_row(split, rows, field, empty)


def _check_leak(task: TaskSpec, splits: Mapping[str, Rows]) -> Iterator[Finding]:
    """Validation rows whose inputs are also trained on, which would flatter the task's metric."""
    if not {"train", "validation"} <= splits.keys():
        return
    trained = {_inputs(task, row): number for row, number in _numbered(splits["train"])}

    def leaked(row: Row) -> str | None:
        if not all(field in row for field in task.template_fields) or (at := trained.get(_inputs(task, row))) is None:
            return None
        return f"the same input is in the training rows (row {at}); remove it from one of the two"

    yield from _each_row("validation", splits["validation"], ", ".join(task.template_fields), leaked)


def _inputs(task: TaskSpec, row: Row) -> tuple[str, ...]:
    return tuple(" ".join(row.get(field, "").split()).casefold() for field in task.template_fields)


def _check_model(
    task: TaskSpec, splits: Mapping[str, Rows], encoder: TaskEncoder, *, has_errors: bool
) -> Iterator[Finding]:
    if task.kind == "classification":
        try:
            _ = encoder.label_token_ids
        except InvalidInputError as error:
            yield Finding("error", str(error), None, None, "labels")
    if has_errors:
        return  # broken rows cannot be encoded, and their own findings say more
    for split, rows in splits.items():
        yield from _check_lengths(split, rows, encoder)


def _check_lengths(split: str, rows: Rows, encoder: TaskEncoder) -> Iterator[Finding]:
    limit = encoder.max_input_tokens
    lengths = [(encoder.count_tokens(row), row, number) for row, number in _numbered(rows)]
    too_long = [(length, number) for length, _, number in lengths if length > limit]
    if too_long:
        longest, number = max(too_long)
        yield Finding(
            "warning",
            f"{len(too_long)} of {len(rows)} inputs have more than {limit} tokens and lose their end; "
            f"the longest has {longest}. Raise max_input_tokens if that matters",
            split,
            number,
        )
    shortest = min(lengths, key=lambda each: each[0])
    try:
        encoder.encode(shortest[1])
    except InvalidInputError as error:
        yield Finding("error", str(error), split, shortest[2])


def _each_row(split: str, rows: Rows, field: str, problem: Callable[[Row], str | None]) -> Iterator[Finding]:
    """One finding per row with a problem, the first few shown and the others counted."""
    found = [(number, said) for row, number in _numbered(rows) if (said := problem(row)) is not None]
    for number, said in found[:SHOWN_ROWS]:
        yield Finding("error", said, split, number, field)
    if len(found) > SHOWN_ROWS:
        yield Finding("error", f"the same holds for {len(found) - SHOWN_ROWS} more rows", split, None, field)


def _numbered(rows: Rows) -> Iterable[tuple[Row, int]]:
    return zip(rows.items, rows.numbers, strict=True)
