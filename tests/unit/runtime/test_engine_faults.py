"""What goes wrong inside one batch must not harm the others in it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from promptstore.errors import CorruptError, NotServingError
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.head import OutputHead
from promptstore.runtime.cached import CachedDecoding, PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.job import Event, Generated, GenerateJob
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Decoding, PreparedPrompt, Row, RunningRows
from promptstore.runtime.sampling import Sampling
from promptstore.testing.engine_rig import EngineRig, random_prompt
from promptstore.testing.tiny_models import tiny_llama, tiny_t5


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


class SmallMemory:
    """As `decoding`, but out of memory for more than `rows` rows, and `failures` more times for any."""

    def __init__(self, decoding: Decoding, *, rows: int, failures: int = 0) -> None:
        self._decoding = decoding
        self.is_padded = decoding.is_padded
        self.rows = rows
        self.failures = failures

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        return self._decoding.prepare(prompt, prefix_ids, is_after=is_after)

    def read(self, rows: Sequence[Row]) -> Tensor:
        self.check(len(rows))
        return self._decoding.read(rows)

    def start(self) -> RunningRows:
        return _SmallRows(self._decoding.start(), self)

    def check(self, rows: int) -> None:
        if rows > self.rows or self.failures > 0:
            self.failures -= rows <= self.rows
            raise torch.OutOfMemoryError("no room")


class _SmallRows:
    def __init__(self, rows: RunningRows, memory: SmallMemory) -> None:
        self._running = rows
        self._memory = memory
        self._count = 0

    def join(self, rows: Sequence[Row]) -> Tensor:
        self._memory.check(self._count + len(rows))
        states = self._running.join(rows)
        self._count += len(rows)
        return states

    def step(self, token_ids: Sequence[int]) -> Tensor:
        self._memory.check(len(token_ids))
        return self._running.step(token_ids)

    def keep(self, rows: Sequence[int]) -> None:
        self._running.keep(rows)
        self._count = len(rows)


def _rig(model: FrozenModel, decoding: Decoding) -> EngineRig:
    return EngineRig(model, decoding, {"p": random_prompt(model, 5, seed=0)})


def test_out_of_memory_shrinks_the_batch_and_answers_everybody(model: FrozenModel) -> None:
    rig = _rig(model, SmallMemory(CachedDecoding(model), rows=3))
    asked = [rig.score("p", [5, 6, 7 + row], (3, 4)) for row in range(8)]
    rig.run(*(job for job, _ in asked))
    plain = _rig(model, CachedDecoding(model))
    for row, (_, answer) in enumerate(asked):
        assert answer.error is None
        assert answer.logits == pytest.approx(plain.answer(plain.score("p", [5, 6, 7 + row], (3, 4))).logits, abs=1e-4)


def test_out_of_memory_for_a_single_input_is_tried_once_more(model: FrozenModel) -> None:
    rig = _rig(model, SmallMemory(CachedDecoding(model), rows=1, failures=1))
    assert rig.answer(rig.score("p", [5], (3, 4))).logits is not None
    rig = _rig(model, SmallMemory(CachedDecoding(model), rows=1, failures=2))
    assert isinstance(rig.answer(rig.score("p", [5], (3, 4))).error, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("make", "decoding"), [(tiny_llama, CachedDecoding), (tiny_llama, PackedDecoding), (tiny_t5, RecomputedDecoding)]
)
def test_answers_set_aside_for_want_of_memory_go_on_where_they_were(
    make: Callable[[], FrozenModel], decoding: Callable[[FrozenModel], Decoding]
) -> None:
    model = make()
    choose_decoding(model)  # packs, where the model can be packed
    memory = SmallMemory(decoding(model), rows=4)
    rig = _rig(model, memory)
    samplings = [Sampling(4 + 2 * row, temperature=0.9, seed=row, top_logprobs=0) for row in range(4)]
    asked = [rig.generate("p", [5, 6, 7 + row], sampling) for row, sampling in enumerate(samplings)]
    rig.engine.start([job for job, _ in asked])
    rig.engine.step()
    memory.rows = 2
    rig.run()
    plain = _rig(model, RecomputedDecoding(model))
    for row, (_, answer) in enumerate(asked):
        own = plain.answer(plain.generate("p", [5, 6, 7 + row], samplings[row]))
        assert (answer.error, answer.ends, answer.reason) == (None, 1, own.reason)
        assert (answer.token_ids, answer.text) == (own.token_ids, own.text)


class _FullAt:
    """As `head`, but out of memory at one of its calls, counted from 0."""

    def __init__(self, head: OutputHead, call: int) -> None:
        self._head, self._left = head, call
        self.weight = head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        self._left -= 1
        if self._left == -1:
            raise torch.OutOfMemoryError("no room")
        return self._head.logits(hidden)


@pytest.mark.parametrize("decoding", [CachedDecoding, PackedDecoding, RecomputedDecoding])
def test_no_token_is_lost_or_doubled_when_memory_runs_out_behind_the_network(
    decoding: Callable[[FrozenModel], Decoding],
) -> None:
    model = tiny_llama()
    choose_decoding(model)
    full = replace(model, head=cast("OutputHead", _FullAt(model.head, 2)))
    rig = _rig(full, decoding(full))
    asked = [rig.generate("p", [5, 6, 7 + row], Sampling(7)) for row in range(4)]
    rig.run(*(job for job, _ in asked))
    plain = _rig(model, RecomputedDecoding(model))
    for row, (_, answer) in enumerate(asked):
        own = plain.answer(plain.generate("p", [5, 6, 7 + row], Sampling(7)))
        assert (answer.error, answer.ends, answer.token_ids) == (None, 1, own.token_ids)


def test_an_answer_that_memory_runs_out_for_twice_is_told_so_and_the_next_one_is_answered(model: FrozenModel) -> None:
    memory = SmallMemory(CachedDecoding(model), rows=4)
    rig = _rig(model, memory)
    asked = [rig.generate("p", [5, 6, 7 + row], Sampling(6)) for row in range(3)]
    rig.engine.start([job for job, _ in asked])
    memory.rows = 0
    rig.run()
    assert all(isinstance(answer.error, torch.OutOfMemoryError) and answer.ends == 1 for _, answer in asked)
    memory.rows = 4
    assert rig.answer(rig.generate("p", [5], Sampling(3))).error is None


def test_an_answer_set_aside_is_told_when_the_server_goes(model: FrozenModel) -> None:
    memory = SmallMemory(CachedDecoding(model), rows=4)
    rig = _rig(model, memory)
    asked = [rig.generate("p", [5, 6, 7 + row], Sampling(6)) for row in range(4)]
    rig.engine.start([job for job, _ in asked])
    memory.rows = 2
    rig.engine.step()
    rig.engine.abort(NotServingError("gone"))
    assert rig.engine.running == 0
    assert [answer.ends for _, answer in asked] == [1, 1, 1, 1]


def test_an_input_that_cannot_be_answered_fails_alone(model: FrozenModel) -> None:
    rig = _rig(model, CachedDecoding(model))
    bad, bad_answer = rig.score("p", [10**9], (3, 4))
    good = [rig.score("p", [5, 6], (3, 4)) for _ in range(5)]
    rig.run(bad, *(job for job, _ in good))
    assert isinstance(bad_answer.error, IndexError)
    assert all(answer.logits is not None for _, answer in good)


class _Poisoned(CachedDecoding):
    """Gives NaN for every row that starts with token 9, as a prompt out of the dtype's range would."""

    def read(self, rows: Sequence[Row]) -> Tensor:
        states = super().read(rows).clone()
        for at, row in enumerate(rows):
            if row.input_ids[0] == 9:
                states[at] = float("nan")
        return states


def test_scores_that_are_not_numbers_are_an_error_of_that_input_alone(model: FrozenModel) -> None:
    rig = _rig(model, _Poisoned(model))
    bad, bad_answer = rig.score("p", [9, 5], (3, 4))
    good, good_answer = rig.score("p", [8, 5], (3, 4))
    rig.run(bad, good)
    assert isinstance(bad_answer.error, CorruptError)
    assert good_answer.logits is not None


def test_a_cancelled_answer_leaves_the_batch_and_the_others_go_on(model: FrozenModel) -> None:
    rig = _rig(model, CachedDecoding(model))
    asked = [rig.generate("p", [5, 6, 7 + row], Sampling(8)) for row in range(3)]
    rig.engine.start([job for job, _ in asked])
    asked[1][0].is_cancelled = True
    rig.run()
    plain = _rig(model, CachedDecoding(model))
    assert asked[1][1].ends == 0
    for row in (0, 2):
        assert asked[row][1].text == plain.answer(plain.generate("p", [5, 6, 7 + row], Sampling(8))).text


@pytest.mark.parametrize("at_token", [1, 2])
@pytest.mark.parametrize("is_told", [True, False])
def test_an_answer_that_cannot_be_delivered_ends_alone_and_the_others_stay_in_step(
    model: FrozenModel, at_token: int, is_told: bool
) -> None:
    rig = _rig(model, CachedDecoding(model))
    asked = [rig.generate("p", [5, 6, 7 + row], Sampling(8)) for row in range(3)]
    job, answer = asked[1]

    def deliver(event: Event) -> None:
        is_lost = len(answer.tokens) + 1 == at_token if isinstance(event, Generated) else not is_told
        if is_lost:
            raise ValueError("no such character")
        answer.take(event)

    broken = GenerateJob(job.digest, job.input_ids, job.sampling, deliver)
    rig.engine.start([asked[0][0], broken, asked[2][0]])
    rig.run()
    assert (len(answer.tokens), answer.ends) == (at_token - 1, int(is_told))
    plain = _rig(model, CachedDecoding(model))
    for row in (0, 2):
        own = plain.answer(plain.generate("p", [5, 6, 7 + row], Sampling(8)))
        assert (asked[row][1].token_ids, asked[row][1].ends) == (own.token_ids, 1)
