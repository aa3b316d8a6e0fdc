"""The promise of the engine: an answer does not depend on who shares the batch, on padding or on arrival."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from promptstore.lm.answering import for_answers
from promptstore.lm.compilers import missing_compiler
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.packed import enable_packing
from promptstore.runtime.cached import CachedDecoding, PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Decoding
from promptstore.runtime.sampling import Sampling
from promptstore.testing.broken_layouts import NeighboursPrompt, PaddingCounted
from promptstore.testing.engine_rig import Answer, EngineRig, random_prompt
from promptstore.testing.tiny_models import tiny_gemma, tiny_gpt2, tiny_llama, tiny_t5

TOLERANCE = 1e-4
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gemma": tiny_gemma, "t5": tiny_t5}
PREFIX = (40, 41, 42)


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> FrozenModel:
    return MODELS[request.param]()


def _rig(model: FrozenModel, decoding: Decoding) -> EngineRig:
    prompts = {f"p{length}": random_prompt(model, length, seed=length) for length in (1, 3, 8, 20, 33)}
    after = () if model.is_encoder_decoder else ("p8", "p20")
    return EngineRig(model, decoding, prompts, prefixes={"p3": PREFIX, "p20": PREFIX}, after=after)


def _random_input(rng: random.Random) -> list[int]:
    start = list(PREFIX[: rng.randint(0, 3)]) if rng.random() < 0.7 else []
    return start + [rng.randrange(3, 500) for _ in range(rng.randint(1, 40))]


def _random_sampling(rng: random.Random) -> Sampling:
    temperature = rng.choice([0.0, 0.0, 0.7, 1.3])
    return Sampling(
        max_tokens=rng.randint(1, 12),
        temperature=temperature,
        top_p=rng.choice([1.0, 0.8]),
        seed=rng.randrange(1000) if temperature else None,
        top_logprobs=rng.choice([None, 0, 3]),
    )


def check_answers_in_batches(rig: EngineRig, alone: EngineRig, rng: random.Random) -> int:
    """Answers random requests in batches, with late arrivals, and each again alone. Returns how many were compared."""
    shared: list[tuple[Answer, Answer]] = []
    for _ in range(4):
        scores, starts = [], []
        for _ in range(rng.randint(1, 7)):
            name, input_ids = rng.choice(["p1", "p3", "p8", "p20", "p33"]), _random_input(rng)
            if rng.random() < 0.5:
                labels = rng.sample(range(3, 500), rng.randint(2, 5))
                scores.append(rig.score(name, input_ids, labels))
                shared.append((scores[-1][1], alone.answer(alone.score(name, input_ids, labels))))
            else:
                sampling = _random_sampling(rng)
                starts.append(rig.generate(name, input_ids, sampling))
                shared.append((starts[-1][1], alone.answer(alone.generate(name, input_ids, sampling))))
        rig.engine.score([job for job, _ in scores])
        rig.engine.start([job for job, _ in starts])
        for _ in range(rng.randint(0, 4)):
            rig.engine.step()
    rig.run()
    for answer, own in shared:
        _assert_same(answer, own)
    return len(shared)


def _assert_same(answer: Answer, own: Answer) -> None:
    assert answer.error is None
    assert answer.ends == own.ends == 1
    assert answer.token_ids == own.token_ids
    assert answer.text == own.text
    assert answer.reason == own.reason
    if own.logits is not None:
        assert answer.logits == pytest.approx(own.logits, abs=TOLERANCE)
    for token, own_token in zip(answer.tokens, own.tokens, strict=True):
        assert token.logprob == pytest.approx(own_token.logprob, abs=TOLERANCE)
        assert [value for _, value in token.top] == pytest.approx([value for _, value in own_token.top], abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_equals_the_one_request_answer(model: FrozenModel, seed: int) -> None:
    decoding, _ = choose_decoding(model)
    rng = random.Random(seed)
    compared = check_answers_in_batches(_rig(model, decoding), _rig(model, RecomputedDecoding(model)), rng)
    assert compared > 3


def test_each_model_gets_the_fastest_way_that_is_right_for_it(model: FrozenModel) -> None:
    decoding, reason = choose_decoding(model)
    expected = {
        "LlamaForCausalLM": PackedDecoding,
        "GPT2LMHeadModel": PackedDecoding,
        "Gemma2ForCausalLM": CachedDecoding,
        "T5ForConditionalGeneration": RecomputedDecoding,
    }
    assert type(decoding) is expected[model.fingerprint.architecture], reason


@pytest.mark.parametrize("seed", range(4))
def test_padded_inputs_give_the_same_answers_as_packed_ones(seed: int) -> None:
    """What a GPU gets, checked on the models that a CPU packs."""
    for model in (tiny_llama(), tiny_gpt2()):
        rng = random.Random(seed)
        assert check_answers_in_batches(_rig(model, CachedDecoding(model)), _rig(model, RecomputedDecoding(model)), rng)


@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("make", "is_compiled"), [(tiny_llama, False), (partial(tiny_gpt2, layers=1), True)])
def test_what_a_server_makes_of_a_model_gives_the_same_answers(
    make: Callable[[], FrozenModel], is_compiled: bool, compiled_folder: Path
) -> None:
    plain, model = make(), for_answers(make(), folder=compiled_folder, is_compiled=is_compiled)
    decoding, reason = choose_decoding(model)
    assert type(decoding) is PackedDecoding
    assert ("compiled" in reason) == is_compiled
    for seed in range(4):
        rng = random.Random(seed)
        assert check_answers_in_batches(_rig(model, decoding), _rig(plain, RecomputedDecoding(plain)), rng)


@pytest.mark.parametrize("broken", [PaddingCounted, NeighboursPrompt])
def test_the_comparison_fails_for_a_broken_layout(broken: type[CachedDecoding]) -> None:
    model = tiny_llama()
    enable_packing(model)
    with pytest.raises(AssertionError):
        check_answers_in_batches(_rig(model, broken(model)), _rig(model, RecomputedDecoding(model)), random.Random(0))
