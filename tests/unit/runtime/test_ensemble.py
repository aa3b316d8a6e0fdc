"""An ensemble answers as its members would together, wherever it was kept and whoever shares the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from promptstore.core.ensemble import COMBINATIONS, Combination, Ensemble
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import Budgets
from promptstore.runtime.cached import CachedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.predictor import Predictor
from promptstore.runtime.sampling import Sampling
from promptstore.runtime.spill import DiskSpill
from promptstore.testing.engine_rig import EngineRig, digest_of, random_prompt
from promptstore.testing.tiny_models import tiny_gemma, tiny_llama, tiny_t5
from promptstore.testing.tuning_tasks import SENTIMENT, sentiment_rows
from promptstore.tuning.evaluate import evaluate_all
from promptstore.tuning.evaluation import EvaluationCase

MODELS = {"llama": tiny_llama, "gemma": tiny_gemma, "t5": tiny_t5}
LABELS = (30, 60, 90)
PREFIX = (40, 41)
INPUTS = ([40, 41, 7, 8, 9], [40, 11], [300] * 30)


def members(model: FrozenModel, count: int = 3) -> dict[str, SoftPrompt]:
    return {f"m{at}": random_prompt(model, 6, seed=at) for at in range(count)}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_its_scores_are_those_of_its_members_together(name: str, combination: Combination, place: str) -> None:
    model = MODELS[name]()
    if place == "after" and model.is_encoder_decoder:
        pytest.skip("prompts stand before the encoder's input")
    alone = members(model)
    prompts = {**alone, "all": SoftPrompt.together(list(alone.values()), combination)}
    after = tuple(prompts) if place == "after" else ()
    rig = EngineRig(model, choose_decoding(model)[0], prompts, prefixes=dict.fromkeys(prompts, PREFIX), after=after)
    asked = [(each, rig.score(each, ids, LABELS)) for ids in INPUTS for each in ("all", *alone)]
    rig.run(*(job for _, (job, _) in asked))
    for start in range(0, len(asked), 4):
        together, *single = (answer.logits for _, (_, answer) in asked[start : start + 4])
        expected = Ensemble(3, combination).combine([logits for logits in single if logits is not None])
        assert together == pytest.approx(expected.tolist(), abs=1e-4)


def test_it_is_kept_on_the_host_and_on_disk_like_any_prompt(tmp_path: Path) -> None:
    model = tiny_llama()
    together = SoftPrompt.together(list(members(model).values()), "vote")
    size = 3 * CachedDecoding(model).prepare(torch.zeros(6, model.hidden_size), ()).size_bytes
    spill = DiskSpill(tmp_path, model, CachedDecoding(model), budget_bytes=1 << 30)
    rig = EngineRig(
        model,
        CachedDecoding(model),
        {"all": together, "other": together},
        budgets=Budgets(size, 0),
        spill=spill,
    )
    first = rig.answer(rig.score("all", INPUTS[0], LABELS)).logits
    assert first is not None
    rig.answer(rig.score("other", INPUTS[0], LABELS))
    assert rig.bank.tier(digest_of("all")) == "disk"
    assert rig.answer(rig.score("all", INPUTS[0], LABELS)).logits == pytest.approx(first, abs=1e-6)
    assert rig.bank.counts["disk"] == 1


def test_what_is_judged_is_what_is_answered() -> None:
    model, rows = tiny_llama(), sentiment_rows(20)
    together = SoftPrompt.together(list(members(model).values()))
    cases = [EvaluationCase(SENTIMENT, each, rows) for each in (together, *together.members)]
    judged, *alone = evaluate_all(model, cases)
    answered = Predictor(model, SENTIMENT, together).predict(rows)
    assert judged.predictions == tuple(each.text for each in answered)
    probabilities = [list(each.probabilities.values()) for each in answered]
    assert np.exp(judged.columns["label_log_probability"]) == pytest.approx(np.array(probabilities), abs=1e-4)
    assert [each.value for each in judged.members] == [each.value for each in alone]
    values = [each.value for each in alone]
    assert judged.member_metrics == {
        "member_average_accuracy": pytest.approx(np.mean(values)),
        "member_best_accuracy": max(values),
    }


def test_it_generates_no_text() -> None:
    model = tiny_llama()
    rig = EngineRig(model, CachedDecoding(model), {"all": SoftPrompt.together(list(members(model).values()))})
    answer = rig.answer(rig.generate("all", INPUTS[0], Sampling(2)))
    assert isinstance(answer.error, InvalidInputError)
