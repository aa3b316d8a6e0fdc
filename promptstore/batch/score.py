"""Every row of a file or data set answered by one version, into a file of JSON lines (ADR 0024)."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from promptstore.batch.answers import Answer, Answers, ScoredVersion, answer_each
from promptstore.batch.judging import judge
from promptstore.batch.score_file import Begun, ScoreFile, score_file
from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.ref import PromptRef
from promptstore.errors import InvalidInputError
from promptstore.objects.open import StoreSettings
from promptstore.tuning.data import load_rows
from promptstore.tuning.metrics import main_metric
from promptstore.tuning.rows import Row, Rows

ROWS_AT_ONCE = 256
# Of probabilities: where a batch was cut moves what is behind them.
DECIMALS = 6
# Told how many rows are answered and how many there are.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What to answer, by what, and where the answers go.

    source: as `load_rows` takes it. keep: fields of a row that go into its answer's line, an id say.
    has_labels: look for the task's target field, and judge the answers by it.
    rows_at_once: rows answered between two writes: what a kill costs at most.
    """

    ref: str
    source: str
    output: Path
    keep: tuple[str, ...] = ()
    has_labels: bool = True
    rows_at_once: int = ROWS_AT_ONCE

    def __post_init__(self) -> None:
        if self.rows_at_once < 1:
            raise InvalidInputError(f"rows_at_once is {self.rows_at_once}, expected at least 1")


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What stands in the file. found: rows that an earlier run had answered. answers: how often each label was said.

    refused: rows that could not be answered; their lines say why. metric: the task's own, and its value over the
    `labelled` rows that were answered; `None` without labels. seconds: of this run.
    """

    output: str
    version: str
    digest: str
    rows: int
    found: int
    refused: int
    labelled: int
    metric: str | None
    value: float | None
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        judged = "" if self.value is None else f"; {self.metric} {self.value:.4f} on {self.labelled} labelled rows"
        refused = f"; {self.refused} could not be answered, their lines say why" if self.refused else ""
        return f"{self.rows} rows by {self.version} in {self.output}{judged}{refused}"


def score(
    request: ScoreRequest,
    answers: Answers,
    *,
    settings: StoreSettings | None = None,
    on_progress: OnProgress = lambda _done, _rows: None,
) -> ScoreSummary:
    """Answer every row with the version that `request.ref` names at the first run, in the order of the rows.

    A row that cannot be answered, one longer than the model say, has a line that says why; the others go on.

    Killed and run again, it goes on after the rows that are there, with the same version, wherever an alias points by
    then. Run again when all is done, it answers nothing and says the same.

    Raises:
        InvalidInputError: rows that cannot be read or lack a field, an unknown label, or an output that was begun with
            another request. NotFoundError: no such data, or no such version (any more).
        ConflictError: another process is writing the output.
    """
    began = time.monotonic()
    ref = PromptRef.parse(request.ref)
    with score_file(request.output) as file:
        begun = file.begun()
        version = answers.resolve(ref if begun is None else PromptRef(begun.task, digest=begun.digest))
        rows = _rows(request, version, settings)
        wanted = _wanted(request, version, rows)
        if begun is None:
            file.begin(begun := wanted)
        file.require_same(begun, wanted)
        found = file.resume(rows.numbers, begun.rows_at_once)
        on_progress(found, len(rows))
        for start in range(found, len(rows), begun.rows_at_once):
            part = rows[start : start + begun.rows_at_once]
            file.append(list(_lines(request, version, part, answer_each(answers, version, part))))
            on_progress(start + len(part), len(rows))
        file.finish()
        return _summary(version, file, found, time.monotonic() - began)


def _rows(request: ScoreRequest, version: ScoredVersion, settings: StoreSettings | None) -> Rows:
    optional = {*request.keep, *((version.target_field,) if request.has_labels else ())}
    rows = load_rows(request.source, fields=version.fields, optional=optional, settings=settings)
    if not rows:
        raise InvalidInputError(f"{request.source} has no rows")
    for name in request.keep:
        if not any(name in row for row in rows):
            raise InvalidInputError(f"{request.source}: no row has the field {name!r} that is to be kept")
    if request.has_labels and version.kind == "classification":
        _check_labels(version, rows)
    return rows


def _check_labels(version: ScoredVersion, rows: Rows) -> None:
    for number, row in zip(rows.numbers, rows, strict=True):
        if (label := row.get(version.target_field)) is not None and label not in version.labels:
            raise InvalidInputError(
                f"{rows.source}, row {number}: label {label!r} is not one of {', '.join(version.labels)}; to score "
                "without judging, leave the labels out of account (--no-labels)"
            )


def _wanted(request: ScoreRequest, version: ScoredVersion, rows: Rows) -> Begun:
    return Begun(
        ref=request.ref,
        task=version.task,
        version=version.number,
        digest=version.digest,
        source=request.source,
        data=sha256_hex(canonical_json([rows.digest, list(rows.numbers)])),
        keep=request.keep,
        has_labels=request.has_labels,
        rows_at_once=request.rows_at_once,
    )


def _lines(
    request: ScoreRequest, version: ScoredVersion, rows: Rows, answers: Sequence[Answer]
) -> Iterator[dict[str, Any]]:
    for number, row, answer in zip(rows.numbers, rows, answers, strict=True):
        line: dict[str, Any] = {"row": number, "version": str(version)}
        if answer.refusal is not None:
            line["error"] = answer.refusal
        elif version.kind == "classification":
            line["label"] = answer.text
            line["probabilities"] = {name: round(value, DECIMALS) for name, value in answer.probabilities.items()}
        else:
            line["text"] = answer.text
        if request.has_labels and version.target_field in row:
            line["expected"] = row[version.target_field]
        if request.keep:
            line["kept"] = _kept(request, row)
        yield line


def _kept(request: ScoreRequest, row: Row) -> dict[str, str]:
    return {name: row[name] for name in request.keep if name in row}


def _summary(version: ScoredVersion, file: ScoreFile, found: int, seconds: float) -> ScoreSummary:
    lines = list(file.lines())
    answered = [line for line in lines if "error" not in line]
    metrics = judge(version, answered)
    metric = main_metric(version.kind, version.metric)
    counts = Counter(line["label"] for line in lines if "label" in line)
    return ScoreSummary(
        output=str(file.path),
        version=str(version),
        digest=version.digest,
        rows=len(lines),
        found=found,
        refused=len(lines) - len(answered),
        labelled=sum("expected" in line for line in answered),
        metric=metric if metric in metrics else None,
        value=metrics.get(metric),
        seconds=round(seconds, 3),
        metrics=metrics,
        answers={name: counts[name] for name in version.labels},
    )
