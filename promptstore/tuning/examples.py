"""Labelled rows as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.rows import Row, Rows


@dataclass(frozen=True, slots=True)
class Example:
    """One row. answer_ids: the label's token, or the text to generate. label: index of the label, -1 for generation."""

    input_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    label: int = -1

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the model reads: the input, and the answer up to the token before its last (teacher forcing)."""
        return (*self.input_ids, *self.answer_ids[:-1])


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """The examples of one task and split.

    prefix_ids: tokens that every example begins with, the template's opening as a rule; `Example.input_ids` has them
    too, and at least one more. label_token_ids: in label order, empty for generation. longest: rows as long as allowed.
    is_prompt_after: the prompt stands after the input.
    """

    examples: tuple[Example, ...]
    prefix_ids: tuple[int, ...]
    label_token_ids: tuple[int, ...]
    longest: int
    is_prompt_after: bool = False

    def __len__(self) -> int:
        return len(self.examples)


def encode_rows(task: TaskSpec, model: FrozenModel, rows: Sequence[Row], *, num_virtual_tokens: int) -> ExampleSet:
    """The rows of one split, encoded as serving encodes them.

    Raises:
        InvalidInputError: no rows, a row without its target or with an unknown label, an input that cannot be encoded;
            names the row.
    """
    if not rows:
        raise InvalidInputError(f"task {task.name}: there are no rows")
    reserved = num_virtual_tokens + (0 if model.is_encoder_decoder else task.max_target_tokens)
    encoder = TaskEncoder(task, model, reserved=reserved)
    labels = {label.name: index for index, label in enumerate(task.labels)}
    answers = encoder.label_token_ids if task.kind == "classification" else ()
    examples = []
    for at, row in enumerate(rows):
        target = _target(task, labels, row, _where(rows, at))
        input_ids = tuple(encoder.encode(row))
        if task.kind == "classification":
            examples.append(Example(input_ids, (answers[labels[target]],), labels[target]))
        else:
            examples.append(Example(input_ids, tuple(encoder.target_ids(target))))
    longest = sum(len(example.input_ids) >= encoder.max_input_tokens for example in examples)
    return ExampleSet(
        tuple(examples), common_prefix(examples), answers, longest, is_prompt_after=task.placement == "after"
    )


def common_prefix(examples: Sequence[Example]) -> tuple[int, ...]:
    """The longest run of tokens that every input begins with, leaving each at least its last token."""
    shortest, longest = (edge(example.input_ids for example in examples) for edge in (min, max))
    limit = min(len(example.input_ids) for example in examples) - 1
    shared = next((at for at, pair in enumerate(zip(shortest, longest, strict=False)) if pair[0] != pair[1]), limit)
    return shortest[: min(shared, limit)]


def draw_rows(rows: Rows, count: int, seed: int) -> Rows:
    """`count` of the rows in their order, chosen by `seed`; all of them if `count` is 0 or there are no more."""
    if count == 0 or len(rows) <= count:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    return Rows(rows.source, tuple(rows.items[at] for at in chosen), tuple(rows.numbers[at] for at in chosen))


def _target(task: TaskSpec, labels: dict[str, int], row: Row, where: str) -> str:
    target = row.get(task.target_field)
    if target is None:
        raise InvalidInputError(f"task {task.name}: {where}: field {task.target_field!r} is missing")
    if task.kind == "classification" and target not in labels:
        raise InvalidInputError(f"task {task.name}: {where}: label {target!r} is not one of {', '.join(labels)}")
    return target


def _where(rows: Sequence[Row], at: int) -> str:
    return f"{rows.source}, row {rows.numbers[at]}" if isinstance(rows, Rows) else f"row {at + 1}"
