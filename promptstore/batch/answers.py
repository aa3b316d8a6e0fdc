"""What scoring asks and is told, wherever the model runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from promptstore.core.ref import PromptRef
from promptstore.core.task import TaskKind, TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.tuning.rows import Row


@dataclass(frozen=True, slots=True)
class ScoredVersion:
    """One version and what scoring needs of its task.

    fields: that the template reads. target_field: where a labelled row has what should be answered.
    """

    task: str
    number: int
    digest: str
    kind: TaskKind
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    target_field: str
    metric: str

    @classmethod
    def of(cls, task: TaskSpec, number: int, digest: str) -> "ScoredVersion":
        return cls(
            task=task.name,
            number=number,
            digest=digest,
            kind=task.kind,
            fields=task.template_fields,
            labels=task.label_names,
            target_field=task.target_field,
            metric=task.metric,
        )

    @property
    def ref(self) -> PromptRef:
        """Names this version whatever aliases do."""
        return PromptRef(self.task, digest=self.digest)

    def __str__(self) -> str:
        return f"{self.task}:{self.number}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said to one row: a label's name with every label's probability, or a text. refusal: why nothing was."""

    text: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    refusal: str | None = None


class Answers(Protocol):
    """Where answers come from."""

    def resolve(self, ref: PromptRef) -> ScoredVersion:
        """The version that `ref` names now.

        Raises:
            NotFoundError: no such task, alias, number or digest.
        """

    def answer(self, version: ScoredVersion, rows: Sequence[Row]) -> list[Answer]:
        """One answer for each row, in order, all of `version`. Equal calls give equal answers, but for rounding.

        Raises:
            InvalidInputError: a row that cannot be answered; it may be any of them.
        """


def answer_each(answers: Answers, version: ScoredVersion, rows: Sequence[Row]) -> list[Answer]:
    """As `Answers.answer`, with a refusal in place of each row that cannot be answered.

    Raises:
        InvalidInputError: none of several rows can be: what is wrong is not the rows.
    """
    try:
        return answers.answer(version, rows)
    except InvalidInputError as error:
        found = _halved(answers, version, rows, error)
        if all(each.refusal for each in found):
            raise
        return found


def _halved(answers: Answers, version: ScoredVersion, rows: Sequence[Row], error: InvalidInputError) -> list[Answer]:
    """Answers of rows that were refused together for `error`."""
    if len(rows) == 1:
        return [Answer("", refusal=str(error))]
    found = []
    for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        try:
            found += answers.answer(version, half)
        except InvalidInputError as again:
            found += _halved(answers, version, half, again)
    return found
