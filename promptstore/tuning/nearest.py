"""Which stored prompt is the best place to start from for a new task (SPoT, Vu et al. 2022).

SPoT compares prompts by the cosine of their values after a short fit. Here each candidate is simply tried on some of
the new task's rows: all share their passes, a few dozen rows tell tasks apart, and nothing has to be fitted first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.examples import draw_rows, encode_rows
from promptstore.tuning.packed import choose_passes
from promptstore.tuning.rows import Row, as_rows
from promptstore.tuning.scoring import score
from promptstore.tuning.token_budget import TokenBudget

SAMPLED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Transfer:
    """How the new task's rows fare behind a prompt that was made for another. loss: mean, without any fit."""

    name: str
    prompt: SoftPrompt
    loss: float


def rank_by_transfer(
    model: FrozenModel,
    task: TaskSpec,
    rows: Sequence[Row],
    prompts: Mapping[str, SoftPrompt],
    *,
    sampled_rows: int = SAMPLED_ROWS,
    seed: int = 0,
) -> list[Transfer]:
    """The prompts, the most useful start for `task` first. rows: of the new task's training split.

    Raises:
        InvalidInputError: no prompts, or rows that cannot be encoded.
        IncompatibleModelError: a prompt of another base model.
    """
    if not prompts:
        raise InvalidInputError(f"task {task.name}: there is no prompt to start from")
    for name, prompt in prompts.items():
        prompt.fingerprint.require_match(model.fingerprint, name)
    drawn = draw_rows(as_rows(rows), sampled_rows, seed)
    longest = max(prompt.num_virtual_tokens for prompt in prompts.values())
    examples = encode_rows(task, model, drawn, num_virtual_tokens=longest)
    tensors = [torch.tensor(prompt.embeddings, device=model.device) for prompt in prompts.values()]
    scored = score(model, choose_passes(model), TokenBudget.of(model), tensors, [examples] * len(tensors))
    found = [
        Transfer(name, prompt, float(-np.mean(columns["log_probability"])))
        for (name, prompt), columns in zip(prompts.items(), scored, strict=True)
    ]
    return sorted(found, key=lambda each: (each.loss, each.name))
