"""Which way a model's rows go: by prompt keys and values where they are proved right, else by input embeddings."""

import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.cached import CachedDecoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Decoding, PreparedPrompt, Row

# Relative to the states' length. A row with its prompt, mask or positions displaced is off by more than half.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}


def choose_decoding(model: FrozenModel) -> tuple[Decoding, str]:
    """The fastest way that gives this model's own answers, and why it was chosen.

    Cache layouts are a model's private matter, so the choice is made by trial: a mixed batch by keys and values
    must give the same states as from input embeddings. Costs three forward passes over a few tokens.
    """
    plain = RecomputedDecoding(model)
    if model.is_encoder_decoder:
        return plain, "encoder-decoder: prompts enter as input embeddings"
    cached = CachedDecoding(model)
    try:
        difference = _difference(model, cached, plain)
    except (InvalidInputError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        return plain, f"no prompt keys and values for this architecture: {error}"
    if not difference <= TOLERANCE.get(model.dtype, 0.1):
        return plain, f"prompt keys and values change this architecture's answers by {difference:.2g}"
    return cached, "prompt keys and values are computed once per version"


def _difference(model: FrozenModel, cached: Decoding, plain: Decoding) -> float:
    """How far apart the two ways are on a mixed batch and one step behind it, relative to the states' length."""
    tokens = [3, 5, 7, 11, 13, 17, 19]
    table = model.embeddings
    prompts = [table[torch.tensor(ids, device=model.device)].detach() for ids in ([3, 4, 5, 6, 7, 8, 9], [11, 2])]
    states: list[Tensor] = []
    for decoding in (cached, plain):
        ready: list[PreparedPrompt] = [decoding.prepare(prompt, (tokens[0],)) for prompt in prompts]
        rows = decoding.start()
        first = rows.join([Row(ready[0], tokens[:2]), Row(ready[1], tokens), Row(ready[1], tokens[1:4])])
        states.append(torch.cat([first, rows.step([4, 5, 6])]).float())
    return float((states[0] - states[1]).norm(dim=1).div(states[1].norm(dim=1)).max())
