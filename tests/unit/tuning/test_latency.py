"""What the gate's clock measures: rows one at a time, behind what serving has computed before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5
from promptstore.testing.tuning_tasks import ECHO, SENTIMENT, echo_rows, sentiment_rows
from promptstore.tuning.evaluation import EvaluationCase, Latency
from promptstore.tuning.examples import encode_rows
from promptstore.tuning.latency import TIMED_ROWS, WARM_UP_ROWS, measure_latency

MakeModel = Callable[[], FrozenModel]
LONG = 60
ROWS = {"classification": sentiment_rows(50), "generation": echo_rows(50)}


def prompt_of(model: FrozenModel, tokens: int = LONG, seed: int = 0) -> SoftPrompt:
    values = np.random.default_rng(seed).standard_normal((tokens, model.hidden_size)).astype(np.float32)
    return SoftPrompt(values, model.fingerprint)


def case_of(task: TaskSpec, prompt: SoftPrompt | None) -> EvaluationCase:
    return EvaluationCase(task, prompt, ROWS[task.kind])


@contextmanager
def counted_positions(model: FrozenModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of every forward pass."""
    found: list[tuple[int, int]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        tensor = given.get("inputs_embeds") if given.get("input_ids") is None else given["input_ids"]
        assert tensor is not None
        found.append((int(tensor.shape[0]), int(tensor.shape[1])))

    network = model.network.get_encoder() if model.is_encoder_decoder else model.network.base_model
    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def own_tokens(model: FrozenModel, task: TaskSpec) -> set[int]:
    """How many tokens of a row are not the template's start."""
    examples = encode_rows(task, model, ROWS[task.kind], num_virtual_tokens=LONG)
    assert examples.prefix_ids
    return {len(each.input_ids) - len(examples.prefix_ids) for each in examples.examples}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_gemma])
@pytest.mark.parametrize("task", [SENTIMENT, ECHO], ids=lambda task: task.name)
def test_a_prompt_is_computed_once_and_rows_compute_their_own_tokens(make: MakeModel, task: TaskSpec) -> None:
    model = make()
    with counted_positions(model) as passes:
        (found,) = measure_latency(model, [case_of(task, prompt_of(model))])
    timed = passes[-(TIMED_ROWS + WARM_UP_ROWS) :]
    assert {rows for rows, _ in timed} == {1}
    assert {tokens for _, tokens in timed} <= own_tokens(model, task)
    assert len(passes) - len(timed) == 3, "the prompt once, and one row both ways to see that they agree"
    assert found.rows == TIMED_ROWS
    assert found.median_ms > 0


def test_all_members_of_an_ensemble_answer_in_one_batch() -> None:
    model = tiny_llama()
    together = SoftPrompt.together([prompt_of(model, seed=seed) for seed in range(3)])
    with counted_positions(model) as passes:
        measure_latency(model, [case_of(SENTIMENT, together)])
    timed = passes[-(TIMED_ROWS + WARM_UP_ROWS) :]
    assert {rows for rows, _ in timed} == {3}
    assert {tokens for _, tokens in timed} <= own_tokens(model, SENTIMENT)


def test_a_prompt_behind_the_input_is_computed_with_every_row() -> None:
    model = tiny_llama()
    with counted_positions(model) as passes:
        measure_latency(model, [case_of(replace(SENTIMENT, placement="after"), prompt_of(model))])
    timed = passes[-(TIMED_ROWS + WARM_UP_ROWS) :]
    assert {tokens - LONG for _, tokens in timed} <= own_tokens(model, SENTIMENT)


def test_an_encoder_reads_the_prompt_with_every_row() -> None:
    model = tiny_t5()
    with counted_positions(model) as passes:
        measure_latency(model, [case_of(SENTIMENT, prompt_of(model))])
    assert len(passes) == TIMED_ROWS + WARM_UP_ROWS
    assert all(tokens > LONG for _, tokens in passes)


def test_the_bare_model_has_a_latency_too() -> None:
    model = tiny_llama()
    with counted_positions(model) as passes:
        measure_latency(model, [case_of(SENTIMENT, None)])
    assert {tokens for _, tokens in passes[-TIMED_ROWS:]} <= own_tokens(model, SENTIMENT)


def test_prompts_take_turns_and_the_median_is_what_counts() -> None:
    """A clock on which every odd row takes ten times as long for who comes second."""
    model = tiny_llama()
    cases = [case_of(replace(SENTIMENT, placement=place), prompt_of(model)) for place in ("before", "after")]
    ticks: list[int] = []
    with counted_positions(model) as passes:

        def clock() -> float:
            ticks.append(passes[-1][1])
            return 0.001 * len(ticks) ** 2

        found = measure_latency(model, cases, clock=clock)
    is_after = [tokens > LONG for tokens in ticks[1::2]]
    assert is_after == [False, True, True, False] * (TIMED_ROWS // 2)
    between = [2 * tick + 1 for tick in range(1, len(ticks), 2)]
    ours = [each for each, after in zip(between, is_after, strict=True) if not after]
    assert found[0].median_ms == pytest.approx(np.median(ours))
    assert found[0].rows == found[1].rows == TIMED_ROWS


def test_few_rows_are_timed_once_each() -> None:
    model = tiny_llama()
    case = replace(case_of(SENTIMENT, prompt_of(model)), rows=sentiment_rows(2))
    assert measure_latency(model, [case], clock=iter(range(4)).__next__) == [Latency(1000, 2)]
