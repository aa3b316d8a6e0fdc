"""Options of the form name=value, and the gate's policy made of them."""

import pytest

from promptstore.cli.pairs import read_pairs, read_policy
from promptstore.errors import InvalidInputError
from promptstore.tuning.gate import GatePolicy


def test_a_value_is_what_toml_would_read_or_text() -> None:
    given = ["steps=400", "rate=0.1", "search=true", "initialise=labels", 'of=["a", "b"]', "text=a=b", "empty="]
    assert read_pairs(given, "--set", "steps=400") == {
        "steps": 400,
        "rate": 0.1,
        "search": True,
        "initialise": "labels",
        "of": ["a", "b"],
        "text": "a=b",
        "empty": "",
    }
    with pytest.raises(InvalidInputError, match=r"--set 'steps': expected name=value, as in steps=400"):
        read_pairs(["steps"], "--set", "steps=400")


def test_every_rule_of_the_gate_can_be_given() -> None:
    given = {
        "minimum": "0.5",
        "alpha": "0.01",
        "max_drop": "0",
        "min_recall": "0.2",
        "min_rows": "5",
        "slices": "language,source",
        "min_slice_accuracy": "0.3",
        "max_latency_ms": "30",
        "max_latency_ratio": "1.5",
        "max_norm": "20",
    }
    policy = GatePolicy(0.5, 0.01, 0.0, 0.2, 5, ("language", "source"), 0.3, 30, 1.5, 20)
    assert read_policy([f"{name}={value}" for name, value in given.items()]) == policy
    assert set(policy.to_json()) == set(given)


def test_a_rule_wins_over_an_option_of_its_own_and_the_default_over_nothing() -> None:
    assert read_policy(None, minimum=None, max_drop=0.1) == GatePolicy(max_drop=0.1)
    assert read_policy(["minimum=0.7", 'slices=["a"]'], minimum=0.6) == GatePolicy(minimum=0.7, slices=("a",))
    with pytest.raises(InvalidInputError, match="unknown rule of the gate 'slice'; did you mean 'slices'"):
        read_policy(["slice=a"])
