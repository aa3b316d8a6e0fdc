"""The gate's decisions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.testing.tuning_samples import evaluation_of, evaluation_with
from promptstore.tuning.evaluation import Evaluation
from promptstore.tuning.gate import GatePolicy, decide

BASE = BaseModelFingerprint("Tiny", 4, "1" * 64, "2" * 64, "tiny")


def failures(candidate: Evaluation, production: Evaluation | None, policy: GatePolicy) -> list[str]:
    verdict = decide(candidate, production, policy)
    assert (verdict.verdict == "fail") == bool(verdict.failures)
    return [check.name for check in verdict.failures]


def test_the_first_version_passes_on_its_own_figures() -> None:
    verdict = decide(evaluation_with(right=90, wrong=10), None, GatePolicy(minimum=0.9))
    assert verdict.verdict == "pass"
    assert verdict.production is None


def test_a_version_below_the_minimum_fails() -> None:
    assert failures(evaluation_with(right=89, wrong=11), None, GatePolicy(minimum=0.9)) == ["minimum"]


def test_a_version_as_good_as_production_passes() -> None:
    candidate = evaluation_with(right=90, wrong=10)
    production = evaluation_with(right=90, wrong=10, first_wrong=10)
    assert failures(candidate, production, GatePolicy()) == []


def test_a_version_that_is_provably_worse_fails_however_small_the_drop() -> None:
    candidate, production = evaluation_with(right=960, wrong=40), evaluation_with(right=1000, wrong=0)
    assert failures(candidate, production, GatePolicy(max_drop=0.2)) == ["no worse than production", "no worse on yes"]


def test_a_large_drop_fails_even_when_too_few_rows_prove_it() -> None:
    candidate, production = evaluation_with(right=21, wrong=4), evaluation_with(right=24, wrong=1, first_wrong=20)
    assert failures(candidate, production, GatePolicy()) == ["drop"]


def test_a_gain_on_one_label_does_not_hide_a_loss_on_another() -> None:
    expected = ["a"] * 100 + ["b"] * 100
    production = evaluation_of(expected, ["a"] * 70 + ["b"] * 30 + ["b"] * 95 + ["a"] * 5)
    candidate = evaluation_of(expected, ["a"] * 100 + ["b"] * 75 + ["a"] * 25)
    assert candidate.value > production.value
    assert failures(candidate, production, GatePolicy()) == ["no worse on b"]


def test_a_floor_for_every_label_names_the_label() -> None:
    candidate = evaluation_of(["a"] * 90 + ["b"] * 10, ["a"] * 98 + ["b"] * 2)
    assert failures(candidate, None, GatePolicy(min_recall=0.5)) == ["recall of b"]


def test_a_handful_of_rows_proves_nothing() -> None:
    assert failures(evaluation_with(right=5, wrong=0), None, GatePolicy()) == ["rows"]


def test_lower_is_better_where_the_metric_is_perplexity() -> None:
    def perplexity_of(value: float) -> Evaluation:
        columns = {
            "log_probability": np.full(50, -np.log(value)),
            "target_tokens": np.ones(50),
            "exact_match": np.zeros(50),
            "token_f1": np.zeros(50),
        }
        return replace(evaluation_with(right=50, wrong=0), kind="generation", metric="perplexity", columns=columns)

    assert failures(perplexity_of(3.0), None, GatePolicy(minimum=4.0)) == []
    assert failures(perplexity_of(5.0), None, GatePolicy(minimum=4.0)) == ["minimum"]
    assert "no worse than production" in failures(perplexity_of(5.0), perplexity_of(3.0), GatePolicy())
    assert failures(perplexity_of(3.0), perplexity_of(5.0), GatePolicy()) == []


def test_a_prompt_of_another_model_or_with_a_dead_token_fails() -> None:
    candidate = evaluation_with(right=50, wrong=0)
    values = np.ones((3, 4), dtype=np.float32)
    fine = decide(candidate, None, GatePolicy(), prompt=SoftPrompt(values, BASE), base=replace(BASE, name="renamed"))
    assert fine.verdict == "pass"
    other = decide(
        candidate, None, GatePolicy(), prompt=SoftPrompt(values, BASE), base=replace(BASE, weights_digest="3" * 64)
    )
    assert [check.name for check in other.failures] == ["base model"]
    values[1] = 0
    dead = decide(candidate, None, GatePolicy(), prompt=SoftPrompt(values, BASE), base=BASE)
    assert [check.name for check in dead.failures] == ["tensor"]


def test_the_verdict_is_the_body_of_an_attestation() -> None:
    verdict = decide(evaluation_with(right=90, wrong=10), evaluation_with(right=80, wrong=20), GatePolicy(minimum=0.5))
    body = json.loads(json.dumps(verdict.to_json()))
    assert body["verdict"] == "pass"
    assert (body["metric"], body["candidate"], body["production"], body["rows"]) == ("accuracy", 0.9, 0.8, 100)
    assert {check["name"] for check in body["checks"]} == {
        "rows",
        "minimum",
        "no worse than production",
        "drop",
        "no worse on yes",
    }


def test_a_policy_that_could_never_fail_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        GatePolicy(alpha=0.0)
