"""How long a row waits for its answer on the model that the gate has opened."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.keys_values import KeysValues, aligned, compute_keys_values
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import answer_hidden, logits_of_labels
from promptstore.tuning.evaluation import EvaluationCase, Latency
from promptstore.tuning.examples import Example, ExampleSet, encode_rows
from promptstore.tuning.packed import LOW_PRECISION_TOLERANCE, TOLERANCE

TIMED_ROWS, WARM_UP_ROWS = 20, 3

States = Callable[[Example], Tensor]


@torch.inference_mode()
def measure_latency(
    model: FrozenModel, cases: Sequence[EvaluationCase], *, clock: Callable[[], float] = time.perf_counter
) -> list[Latency]:
    """Time to first token: from a row's token ids to the logits, on the host, that its label or the first token of its
    text is read from. Encoding, queue and network are left out.

    As in serving, a prompt's keys and values are computed before, once, and all members of an ensemble answer in one
    batch. Rows go one at a time, spread over all. Cases take turns on each, now one first and now the other.

    cases: of the same rows.
    """
    answers = [_answering(model, case) for case in cases]
    count = len(cases[0].rows)
    places = np.linspace(0, count - 1, min(count, TIMED_ROWS)).astype(int).tolist()
    for place in places[:WARM_UP_ROWS]:
        for answer in answers:
            answer(place)
    seconds: list[list[float]] = [[] for _ in cases]
    turns = list(zip(answers, seconds, strict=True))
    for place in places:
        for answer, found in turns:
            began = clock()
            answer(place)
            found.append(clock() - began)
        turns.reverse()
    return [Latency(1000 * median(found), len(found)) for found in seconds]


def _answering(model: FrozenModel, case: EvaluationCase) -> Callable[[int], Tensor]:
    """Gives the logits for the row at a place, [members, labels] or [1, V]."""
    virtual_tokens = 0 if case.prompt is None else case.prompt.num_virtual_tokens
    examples = encode_rows(case.task, model, case.rows, num_virtual_tokens=virtual_tokens)
    tensors = (
        [torch.tensor(each.embeddings, device=model.device) for each in case.prompt.members] if case.prompt else []
    )
    states = _choose_states(model, tensors or [model.embeddings[:0]], examples)

    def answer(place: int) -> Tensor:
        hidden = states(examples.examples[place])
        if examples.label_token_ids:
            return logits_of_labels(model, hidden, examples.label_token_ids).cpu()
        return model.head.logits(hidden.to(model.head.weight.device)).cpu()

    return answer


def _choose_states(model: FrozenModel, members: Sequence[Tensor], examples: ExampleSet) -> States:
    """As serving does: behind keys and values where one row shows that to be right, else from input embeddings."""
    whole = _from_embeddings(model, members, is_after=examples.is_prompt_after)
    if model.is_encoder_decoder:
        return whole
    trial = examples.examples[0]
    try:
        kept = _behind_keys_values(model, members, examples)
        found, expected = kept(trial).float(), whole(trial).float()
    except (InvalidInputError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return whole  # an architecture with a cache of its own
    tolerance = TOLERANCE if model.dtype in (torch.float32, torch.float64) else LOW_PRECISION_TOLERANCE
    return kept if float((found - expected).norm() / expected.norm()) < tolerance else whole


def _from_embeddings(model: FrozenModel, members: Sequence[Tensor], *, is_after: bool) -> States:
    def states(example: Example) -> Tensor:
        inputs, nothing = [example.input_ids] * len(members), [()] * len(members)
        tails, heads = (nothing, inputs) if is_after else (inputs, nothing)
        return answer_hidden(model, lay_out(model, members, tails, heads))

    return states


def _behind_keys_values(model: FrozenModel, members: Sequence[Tensor], examples: ExampleSet) -> States:
    prefix = examples.prefix_ids
    before = [each[:0] if examples.is_prompt_after else each for each in members]
    known = [_keys_values(model, each, prefix) for each in before]
    suffixes = [each.to(model.dtype) for each in members] if examples.is_prompt_after else []
    own = len(suffixes[0]) if suffixes else 0

    def states(example: Example) -> Tensor:
        ids = example.input_ids[len(prefix) :]
        return aligned(known, room=len(ids) + own).run(model, [ids] * len(known), suffixes)

    return states


def _keys_values(model: FrozenModel, prompt: Tensor, ids: tuple[int, ...]) -> KeysValues:
    """A pass needs a position; where there is none, what it gives is cut away again."""
    length = len(prompt) + len(ids)
    found = compute_keys_values(model, prompt, ids if length else (0,))
    return KeysValues(found.keys[:, :, :length], found.values[:, :, :length])
