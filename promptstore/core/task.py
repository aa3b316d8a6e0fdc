"""What a prompt is for: the task's template, labels, lengths, metric and data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Literal, cast, get_args

from promptstore.core.fields import Fields
from promptstore.core.name import check_name
from promptstore.errors import InvalidInputError

TaskKind = Literal["classification", "generation"]
Placement = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Label:
    """One class: its name in the data and the text the model says for it (its verbaliser)."""

    name: str
    verbaliser: str


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where the labelled rows are: JSONL, CSV or Parquet paths, `hf:<dataset>[:<config>]/<split>` or `s3://` URLs."""

    train: str
    validation: str


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task as training and serving both see it; it travels in the manifest, so the two cannot skew.

    template: text with named fields, as in `Review: {text}\\nSentiment:`; `{{` and `}}` are literal braces.
    target_field: the column with the label's name (classification) or the text to generate (generation).
    max_input_tokens: longer inputs lose the end of their longest field, never template text.
    tuning: overrides of the fit's defaults, checked by `promptstore.tuning`.
    placement: where the prompt stands, before the input or after it, next to the answer.

    Raises:
        InvalidInputError: names the field of the specification and what it should hold.
    """

    name: str
    kind: TaskKind
    template: str
    data: DataSource
    labels: tuple[Label, ...] = ()
    target_field: str = "label"
    metric: str = "accuracy"
    max_input_tokens: int = 256
    max_target_tokens: int = 16
    tuning: Mapping[str, Any] = field(default_factory=dict)
    placement: Placement = "before"

    def __post_init__(self) -> None:
        check_name(self.name, "task name")
        if self.placement not in get_args(Placement):
            raise InvalidInputError(
                f"task {self.name}: placement is {self.placement!r}, expected one of {get_args(Placement)}"
            )
        if self.kind not in get_args(TaskKind):
            raise InvalidInputError(f"task {self.name}: kind is {self.kind!r}, expected one of {get_args(TaskKind)}")
        if not self.template_fields:
            raise InvalidInputError(f"task {self.name}: the template has no {{field}}, so every input would look alike")
        if self.max_input_tokens < 1 or self.max_target_tokens < 1:
            raise InvalidInputError(f"task {self.name}: max_input_tokens and max_target_tokens must be at least 1")
        self._check_labels()

    @property
    def template_fields(self) -> tuple[str, ...]:
        """The field names of the template, in order of first use."""
        names: dict[str, None] = {}
        try:
            for _, name, spec, conversion in Formatter().parse(self.template):
                if name is None:
                    continue
                if not name.isidentifier() or spec or conversion:
                    raise InvalidInputError(
                        f"task {self.name}: template field {{{name}}} must be a plain name; write {{{{ for a brace"
                    )
                names[name] = None
        except ValueError as error:
            raise InvalidInputError(f"task {self.name}: the template is malformed: {error}") from error
        return tuple(names)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def render(self, row: Mapping[str, str]) -> str:
        """The text of one input.

        Raises:
            InvalidInputError: `row` lacks a field of the template or holds something that is not text.
        """
        values = {}
        for name in self.template_fields:
            value = row.get(name)
            if not isinstance(value, str):
                found = "missing" if value is None else f"{type(value).__name__}"
                raise InvalidInputError(f"task {self.name}: input field {name!r} is {found}, expected text")
            values[name] = value
        return self.template.format(**values)

    def _check_labels(self) -> None:
        if self.kind == "generation":
            if self.labels:
                raise InvalidInputError(f"task {self.name}: a generation task has no labels; remove them")
            return
        if len(self.labels) < 2:
            raise InvalidInputError(f"task {self.name}: a classification task needs at least two labels")
        for what, texts in (
            ("name", self.label_names),
            ("verbaliser", tuple(label.verbaliser for label in self.labels)),
        ):
            repeated = {text for text in texts if texts.count(text) > 1}
            if repeated or "" in texts:
                raise InvalidInputError(
                    f"task {self.name}: label {what}s must be distinct and not empty: {list(texts)}"
                )

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it. `placement` is written where it is not the usual one, which older readers refuse."""
        placement = {} if self.placement == "before" else {"placement": self.placement}
        return placement | {
            "name": self.name,
            "kind": self.kind,
            "template": self.template,
            "labels": [{"name": label.name, "verbaliser": label.verbaliser} for label in self.labels],
            "target_field": self.target_field,
            "metric": self.metric,
            "max_input_tokens": self.max_input_tokens,
            "max_target_tokens": self.max_target_tokens,
            "data": {"train": self.data.train, "validation": self.data.validation},
            "tuning": dict(self.tuning),
        }

    @classmethod
    def from_json(cls, value: Any) -> "TaskSpec":
        fields = Fields(value, "task specification")
        data = Fields(fields.mapping("data"), "task specification: data")
        spec = cls(
            name=fields.text("name"),
            kind=cast("TaskKind", fields.text("kind")),
            template=fields.text("template"),
            labels=tuple(_label(item) for item in fields.array("labels")),
            target_field=fields.text("target_field"),
            metric=fields.text("metric"),
            max_input_tokens=fields.integer("max_input_tokens", at_least=1),
            max_target_tokens=fields.integer("max_target_tokens", at_least=1),
            data=DataSource(train=data.text("train"), validation=data.text("validation")),
            tuning=fields.mapping("tuning"),
            placement=cast("Placement", fields.text("placement")) if fields.has("placement") else "before",
        )
        data.done()
        fields.done()
        return spec


def _label(value: Any) -> Label:
    fields = Fields(value, "label")
    label = Label(name=fields.text("name"), verbaliser=fields.text("verbaliser"))
    fields.done()
    return label
