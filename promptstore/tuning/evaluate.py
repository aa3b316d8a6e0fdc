"""How well prompts do on labelled rows, several prompts in one batch."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.ensemble import together
from promptstore.tuning.evaluation import Evaluation, EvaluationCase
from promptstore.tuning.examples import ExampleSet, encode_rows
from promptstore.tuning.generate import generate_texts
from promptstore.tuning.metrics import Columns, exact_match, main_metric, token_f1
from promptstore.tuning.packed import choose_passes
from promptstore.tuning.rows import Row, as_rows
from promptstore.tuning.scoring import score
from promptstore.tuning.token_budget import TokenBudget


def evaluate(model: FrozenModel, task: TaskSpec, prompt: SoftPrompt | None, rows: Sequence[Row]) -> Evaluation:
    """How one prompt, or the bare model, does on labelled rows. Raises as `evaluate_all`."""
    return evaluate_all(model, [EvaluationCase(task, prompt, rows)])[0]


def evaluate_all(model: FrozenModel, cases: Sequence[EvaluationCase]) -> list[Evaluation]:
    """Every case, computed together; an evaluation's `seconds` is its share by rows.

    Raises:
        InvalidInputError: no rows, a row without its target or with an unknown label, an unknown metric, an ensemble
            for a task that generates text.
        IncompatibleModelError: a prompt of another base model.
    """
    for case in cases:
        if case.prompt is not None:
            case.prompt.fingerprint.require_match(model.fingerprint, f"a prompt for {case.task.name}")
        main_metric(case.task.kind, case.task.metric)
    found = iter(_evaluate_alone(model, [member for case in cases for member in case.alone]))
    return [together(case.prompt, found) for case in cases]


def _evaluate_alone(model: FrozenModel, cases: Sequence[EvaluationCase]) -> list[Evaluation]:
    sets = [_encoded(model, case) for case in cases]
    prompts = [_tensor(model, case.prompt) for case in cases]
    began = time.perf_counter()
    scored = score(model, choose_passes(model), TokenBudget.of(model), prompts, sets)
    answered = [
        _answered(model, case, prompt, each, columns)
        for case, prompt, each, columns in zip(cases, prompts, sets, scored, strict=True)
    ]
    seconds = (time.perf_counter() - began) / max(1, sum(map(len, sets)))
    return [
        Evaluation.of(case, columns, predictions, seconds * len(each))
        for case, each, (columns, predictions) in zip(cases, sets, answered, strict=True)
    ]


def _encoded(model: FrozenModel, case: EvaluationCase) -> ExampleSet:
    virtual_tokens = 0 if case.prompt is None else case.prompt.num_virtual_tokens
    return encode_rows(case.task, model, as_rows(case.rows), num_virtual_tokens=virtual_tokens)


def _tensor(model: FrozenModel, prompt: SoftPrompt | None) -> Tensor | None:
    return None if prompt is None else torch.tensor(prompt.embeddings, device=model.device)


def _answered(
    model: FrozenModel, case: EvaluationCase, prompt: Tensor | None, examples: ExampleSet, columns: Columns
) -> tuple[Columns, tuple[str, ...]]:
    """The final columns and what was said, row by row. A text is judged by what greedy decoding really gives."""
    if case.task.kind == "classification":
        return columns, tuple(case.task.labels[at].name for at in columns["predicted"])
    texts = generate_texts(
        model,
        prompt,
        examples.examples,
        max_new_tokens=case.task.max_target_tokens,
        is_prompt_after=examples.is_prompt_after,
    )
    targets = [row[case.task.target_field] for row in case.rows]
    pairs = list(zip(texts, targets, strict=True))
    judged = {
        **columns,
        "exact_match": np.array([exact_match(*pair) for pair in pairs]),
        "token_f1": np.array([token_f1(*pair) for pair in pairs]),
    }
    return judged, tuple(texts)
