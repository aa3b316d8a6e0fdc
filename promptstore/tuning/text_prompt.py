"""What a person would write in place of a soft prompt: the choices, and a few solved examples."""

from collections.abc import Sequence

import numpy as np
import torch

from promptstore.core.prompt import MAX_VIRTUAL_TOKENS, SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.rows import Row

# Solved examples: one of each label, so many at most; of a task that generates text, so many.
MOST_LABELS, TEXTS = 8, 3


def text_prompt(model: FrozenModel, task: TaskSpec, rows: Sequence[Row]) -> SoftPrompt:
    """An instruction and examples in context, as the embeddings of their tokens: the baseline of a written prompt.

    Standing where a soft prompt would, it is evaluated by the same code, in the same batch. rows: of the training
    split; the first of each label becomes an example, the longest of them left out until half of the model is free.

    Raises:
        InvalidInputError: no rows, or not even the instruction fits.
    """
    examples = _examples(task, rows)
    limit = MAX_VIRTUAL_TOKENS if model.max_length is None else min(MAX_VIRTUAL_TOKENS, model.max_length // 2)
    while True:
        ids = _token_ids(model, _instruction(task) + "".join(examples))
        if 0 < len(ids) <= limit:
            embedded = model.embed(torch.tensor([ids], device=model.device))[0].float().cpu().numpy()
            return SoftPrompt(np.ascontiguousarray(embedded), model.fingerprint)
        if not examples:
            raise InvalidInputError(f"task {task.name}: a written prompt of {len(ids)} tokens does not fit {limit}")
        examples.remove(max(examples, key=len))


def _instruction(task: TaskSpec) -> str:
    if task.kind == "generation":
        return ""
    said = [label.verbaliser for label in task.labels]
    return f"Answer with {', '.join(said[:-1])} or {said[-1]}.\n\n"


def _examples(task: TaskSpec, rows: Sequence[Row]) -> list[str]:
    if not rows:
        raise InvalidInputError(f"task {task.name}: there are no rows to take examples from")
    if task.kind == "generation":
        return [_solved(task, row, row[task.target_field]) for row in rows[:TEXTS]]
    said = {label.name: label.verbaliser for label in task.labels}
    first = {row[task.target_field]: row for row in reversed(rows)}
    chosen = [name for name in said if name in first][:MOST_LABELS]
    return [_solved(task, first[name], said[name]) for name in chosen]


def _solved(task: TaskSpec, row: Row, answer: str) -> str:
    asked = task.render(row)
    return f"{asked}{'' if asked[-1:].isspace() else ' '}{answer.strip()}\n\n"


def _token_ids(model: FrozenModel, text: str) -> list[int]:
    return [int(index) for index in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
