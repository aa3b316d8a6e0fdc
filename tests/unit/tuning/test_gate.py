"""The gate's decisions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.testing.tuning_samples import evaluation_of, evaluation_with
from promptstore.tuning.evaluation import Evaluation, Latency
from promptstore.tuning.gate import GatePolicy, GateVerdict
from promptstore.tuning.gate_rules import NO_SLICES, Slices, decide
from promptstore.tuning.slices import slice_columns

BASE = BaseModelFingerprint("Tiny", 4, "1" * 64, "2" * 64, "tiny")


def failures(
    candidate: Evaluation, production: Evaluation | None, policy: GatePolicy, slices: Slices = NO_SLICES
) -> list[str]:
    verdict = decide(candidate, production, policy, slices=slices)
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


def languages(**rows: int) -> Slices:
    return {"language": [name for name, count in rows.items() for _ in range(count)]}


def test_a_gain_on_one_slice_does_not_hide_a_loss_on_another() -> None:
    production = evaluation_with(right=150, wrong=50)
    candidate = evaluation_with(right=180, wrong=20, first_wrong=180)
    assert candidate.value > production.value
    policy = GatePolicy(slices=("language",))
    assert failures(candidate, production, policy, languages(en=150, de=50)) == ["no worse where language is de"]
    assert failures(candidate, production, policy, languages(en=30, de=170)) == []


def test_slices_share_alpha_over_all_columns() -> None:
    """Five lost rows of one value alone: p is 1/32, below 0.05 and above half of it."""
    production, candidate = evaluation_with(right=100, wrong=0), evaluation_with(right=95, wrong=5)
    columns = {"source": ["web"] * 50 + ["paper"] * 50, "one": ["all"] * 100}
    policy = GatePolicy(alpha=0.05, slices=("source",))
    verdict = decide(candidate, production, policy, slices=columns)
    assert {check.figures["p"]: check.figures["bound"] for check in verdict.checks if "where" in check.name} == {
        1 / 32: 0.025,
        1.0: 0.025,
    }
    both = decide(candidate, production, replace(policy, slices=("source", "one")), slices=columns)
    assert {check.figures["bound"] for check in both.checks if "where" in check.name} == {0.05 / 3}


def test_a_slice_of_a_handful_of_rows_is_not_judged_and_says_so() -> None:
    production, candidate = evaluation_with(right=100, wrong=0), evaluation_with(right=95, wrong=5, first_wrong=95)
    policy = GatePolicy(slices=("language",), min_slice_accuracy=0.5)
    verdict = decide(candidate, production, policy, slices=languages(en=95, de=5))
    (few,) = (check for check in verdict.checks if "is de" in check.name)
    assert (few.holds, few.figures) == (True, {"rows": 5, "bound": 20})
    assert few.explanation == "5 rows where language is de: not judged apart, fewer than 20 prove nothing"


def test_a_floor_for_every_slice_names_the_slice_even_with_nothing_in_production() -> None:
    candidate = evaluation_with(right=80, wrong=20, first_wrong=60)
    policy = GatePolicy(slices=("language",), min_slice_accuracy=0.6)
    assert failures(candidate, None, policy, languages(en=60, de=40)) == ["accuracy where language is de"]
    assert failures(candidate, None, policy, languages(en=50, de=50)) == []


def test_a_column_that_is_no_slice_is_refused() -> None:
    rows = [{"text": str(number), "language": "en"} for number in range(60)]
    assert slice_columns(rows, ["language"]) == {"language": ("en",) * 60}
    with pytest.raises(InvalidInputError, match="by column 'source'; the columns are language, text"):
        slice_columns(rows, ["source"])
    with pytest.raises(InvalidInputError, match="column 'text' is no slice: 60 values in 60 rows"):
        slice_columns(rows, ["text"])
    with pytest.raises(InvalidInputError, match="the longest of 101 characters"):
        slice_columns([{"text": "a" * 101}], ["text"])
    many = [{name: str(number) for name in "abc"} for number in range(40)]
    with pytest.raises(InvalidInputError, match="a, b, c make 120 slices"):
        slice_columns(many, ["a", "b", "c"])


def timed(median_ms: float) -> Evaluation:
    return replace(evaluation_with(right=50, wrong=0), latency=Latency(median_ms, 20))


def test_a_version_that_takes_too_long_fails_by_the_clock_or_against_production() -> None:
    budget, ratio = GatePolicy(max_latency_ms=30), GatePolicy(max_latency_ratio=1.2)
    assert failures(timed(30), timed(10), budget) == []
    assert failures(timed(31), timed(31), budget) == ["time to first token"]
    assert failures(timed(12), timed(10), ratio) == []
    assert failures(timed(13), timed(10), ratio) == ["time to first token against production"]
    (check,) = decide(timed(13), timed(10), ratio).failures
    assert check.figures == {"value": 1.3, "bound": 1.2, "candidate_ms": 13, "production_ms": 10}


def test_a_first_version_has_nobody_to_be_slower_than() -> None:
    verdict = decide(timed(13), None, GatePolicy(max_latency_ratio=1.2))
    assert verdict.checks[-1].explanation == "there is nothing to compare with"
    assert verdict.verdict == "pass"


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_number_that_half_precision_cannot_hold_fails(scale: float) -> None:
    values = np.ones((3, 4), dtype=np.float32)
    for largest, expected in ((65504, []), (65536, ["half precision"])):
        values[2, 1] = scale * largest
        prompt = SoftPrompt(values, BASE)
        verdict = decide(evaluation_with(right=50, wrong=0), None, GatePolicy(), prompt=prompt, base=BASE)
        assert [check.name for check in verdict.failures] == expected


def test_the_longest_virtual_token_of_any_member_has_a_bound() -> None:
    short, long = (SoftPrompt(np.full((3, 4), value, dtype=np.float32), BASE) for value in (0.5, 2.0))
    candidate = evaluation_with(right=50, wrong=0)
    for prompt, expected in ((short, []), (SoftPrompt.together([short, long]), ["norm"])):
        verdict = decide(candidate, None, GatePolicy(max_norm=3.0), prompt=prompt, base=BASE)
        assert [check.name for check in verdict.failures] == expected
    (check,) = verdict.failures
    assert check.figures == {"value": 4.0, "bound": 3.0}


def test_norms_past_the_range_of_float32_have_figures_that_the_log_can_keep() -> None:
    prompt = SoftPrompt(np.full((1, 4), 1e30, dtype=np.float32), BASE)
    verdict = decide(evaluation_with(right=50, wrong=0), None, GatePolicy(), prompt=prompt, base=BASE)
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (GatePolicy(slices=("language",)), "slices"),
        (GatePolicy(max_latency_ms=1), "max_latency_ms"),
        (GatePolicy(max_latency_ratio=1), "max_latency_ratio"),
        (GatePolicy(max_norm=1), "max_norm"),
    ],
)
def test_a_rule_does_not_hold_because_nobody_looked(policy: GatePolicy, rule: str) -> None:
    candidate = evaluation_with(right=50, wrong=0)
    with pytest.raises(InvalidInputError, match=f"not given what these rules look at: {rule}$"):
        decide(candidate, candidate, policy)
    if rule == "max_latency_ratio":
        with pytest.raises(InvalidInputError, match=rule):
            decide(timed(3), candidate, policy)


@pytest.mark.parametrize(
    "policy",
    [GatePolicy(), GatePolicy(0.5, 0.01, 0.0, 0.2, 5, ("language", "source"), 0.3, 30.0, 1.5, 20)],
)
def test_a_verdict_and_its_policy_are_read_back_from_the_log(policy: GatePolicy) -> None:
    candidate, production = timed(13), timed(10)
    slices = {name: ["one"] * 50 for name in policy.slices}
    prompt = SoftPrompt(np.ones((3, 4), dtype=np.float32), BASE)
    verdict = decide(candidate, production, policy, prompt=prompt, base=BASE, slices=slices)
    body = json.loads(json.dumps({**verdict.to_json(), "alias": "production", "against": 1}))
    assert GateVerdict.from_json(body) == verdict
    assert GatePolicy.from_json(body["policy"]) == policy
    assert (body["policy"], body["model"]) == (policy.to_json(), BASE.weights_digest)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "fail"},
        {"candidate": "0.9"},
        {"policy": {"alpha": 2}},
        {"policy": {"later": 1}},
        {"checks": [{"name": "rows"}]},
        {"data_digest": "a"},
    ],
)
def test_a_verdict_of_another_make_is_not_taken_for_ours(change: dict[str, object]) -> None:
    body = decide(evaluation_with(right=90, wrong=10), None, GatePolicy()).to_json()
    with pytest.raises(CorruptError):
        GateVerdict.from_json({**body, **change})
    with pytest.raises(CorruptError, match="field metric is missing"):
        GateVerdict.from_json({"verdict": "pass"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": 0.0}, "rule alpha of the gate must be between 0 and 1"),
        ({"max_drop": -0.1}, "max_drop"),
        ({"min_rows": 0}, "min_rows"),
        ({"min_recall": 1.5}, "min_recall"),
        ({"max_norm": 0}, "max_norm"),
        ({"max_latency_ms": "30"}, "rule max_latency_ms of the gate is '30', expected a number"),
        ({"alpha": None}, "alpha"),
        ({"slices": "language"}, "expected a list of columns"),
        ({"slices": ["a", "a"]}, "slices"),
        ({"slices": [1]}, "slices"),
        ({"min_slice_accuracy": 0.5}, "slices"),
        ({"min_recal": 0.5}, "unknown rule of the gate 'min_recal'; did you mean 'min_recall'"),
    ],
)
def test_a_policy_that_says_nothing_sensible_is_refused_by_rule(given: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        GatePolicy.from_json(given)
