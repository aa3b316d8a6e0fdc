"""Which way a model's rows go: by prompt keys and values where they are proved right, else by input embeddings."""

import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.packed import disable_packing, enable_packing
from promptstore.runtime.cached import CachedDecoding, PackedDecoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Decoding, PreparedPrompt, Row

# Ordinary text: behind tokens that mean nothing to a model, a bf16 network amplifies rounding into another answer.
TRIAL_TEXT = "Which of the two films is better, and what do people who saw both of them say about it?"
TRIAL_TOKENS = 16
# Relative to the states' length. A row with its prompt, mask or positions displaced is off by more than half.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def choose_decoding(model: FrozenModel) -> tuple[Decoding, str]:
    """The fastest way that gives this model's own answers, and why it was chosen.

    Cache layouts are a model's private matter, so the choice is made by trial: a mixed batch by keys and values
    must give the same states as from input embeddings. Costs a few forward passes over a few tokens.
    """
    plain = RecomputedDecoding(model)
    if model.is_encoder_decoder:
        return plain, "encoder-decoder: prompts enter as input embeddings"
    if model.device.type == "cpu" and _is_packable(model, plain):
        how = "packed and the network is compiled" if model.compiled else "packed"
        return PackedDecoding(model), f"prompt keys and values are computed once per version; inputs are {how}"
    cached = CachedDecoding(model)
    problem = _problem(model, cached, plain)
    if problem:
        return plain, f"no prompt keys and values for this architecture: {problem}"
    return cached, "prompt keys and values are computed once per version; inputs are padded"


def _is_packable(model: FrozenModel, plain: Decoding) -> bool:
    try:
        enable_packing(model)
    except (InvalidInputError, ValueError):
        return False
    if not _problem(model, PackedDecoding(model), plain):
        return True
    disable_packing(model)
    return False


def _problem(model: FrozenModel, fast: Decoding, plain: Decoding) -> str:
    """Why `fast` is not right for this model; empty if it is."""
    try:
        difference = _difference(model, fast, plain)
    except (InvalidInputError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        return str(error)
    if difference <= TOLERANCE.get(model.dtype, 0.1):
        return ""
    return f"its answers would change by {difference:.2g}"


def _difference(model: FrozenModel, fast: Decoding, plain: Decoding) -> float:
    """How far apart the two ways are on a mixed batch and one step behind it, relative to the states' length."""
    ids = _trial_ids(model)
    tokens, written = ids[:7], torch.tensor(ids[7:16], device=model.device)
    prompts = [model.embeddings[part].detach() for part in (written[:7], written[7:])]
    states: list[Tensor] = []
    for decoding in (fast, plain):
        ready: list[PreparedPrompt] = [decoding.prepare(prompt, (tokens[0],)) for prompt in prompts]
        after = decoding.prepare(prompts[0], (tokens[0],), is_after=True)
        rows = decoding.start()
        first = rows.join(
            [Row(ready[0], tokens[:2]), Row(ready[1], tokens), Row(after, tokens[:4]), Row(ready[1], tokens[1:4])]
        )
        states.append(torch.cat([first, rows.step([tokens[at] for at in (2, 3, 5, 4)])]).float())
    return float((states[0] - states[1]).norm(dim=1).div(states[1].norm(dim=1)).max())


def _trial_ids(model: FrozenModel) -> list[int]:
    """Sixteen tokens of ordinary text; of a vocabulary that has no words for it, some from all over."""
    ids: list[int] = model.tokenizer(TRIAL_TEXT, add_special_tokens=False)["input_ids"]
    if len(set(ids[:TRIAL_TOKENS])) > TRIAL_TOKENS // 2:
        return ids[:TRIAL_TOKENS]
    return [model.vocabulary_size * (1 + at) // (TRIAL_TOKENS + 2) for at in range(TRIAL_TOKENS)]
