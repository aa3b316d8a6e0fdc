"""Settings of a fit: strict where they come from a task file, pure where they are used."""

import pytest

from promptstore.errors import InvalidInputError
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.initialiser import parse_initialiser


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'learning_rate'"):
        TuneConfig.from_mapping({"learning_rat": 0.1})


def test_an_unknown_setting_with_no_near_name_lists_all() -> None:
    with pytest.raises(InvalidInputError, match=r"known settings: .*num_virtual_tokens.*seed"):
        TuneConfig.from_mapping({"zzz": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10.0}, "steps is 10.0, expected int"),
        ({"steps": True}, "steps is True, expected int"),
        ({"num_virtual_tokens": 5000}, "num_virtual_tokens must be 1 to 4096"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1', expected float"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"optimiser": "adam"}, "expected one of adamw, adafactor; did you mean 'adamw'"),
        ({"schedule": "step"}, "expected one of constant, linear, cosine"),
        ({"steps": 5, "warmup_steps": 6}, "warmup_steps must be at most"),
        ({"seed": -1}, "seed must be 0"),
        ({"initialise": "vocab"}, "did you mean 'vocabulary'"),
        ({"initialise": "text:"}, "lacks what to start from"),
        ({"initialise": "labels:3"}, "takes nothing behind a colon"),
        ({"initialise": "vocabulary:1.5"}, "whole for 'vocabulary'"),
        ({"initialise": "vocabulary:many"}, "'many' is not a number"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TuneConfig.from_mapping(values)


def test_equal_settings_have_equal_digests_however_they_were_written() -> None:
    assert TuneConfig.from_mapping({"learning_rate": 1}).digest == TuneConfig(learning_rate=1.0).digest
    assert TuneConfig(seed=1).digest != TuneConfig(seed=2).digest


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_warms_up_and_decays(schedule: str, rates: list[float]) -> None:
    config = TuneConfig.from_mapping({"schedule": schedule, "learning_rate": 1.0, "warmup_steps": 2, "steps": 6})
    assert [config.learning_rate_at(step) for step in range(1, 7)] == pytest.approx(rates, abs=1e-6)


def test_an_initialiser_keeps_colons_of_its_text() -> None:
    assert parse_initialiser("text:Answer: yes").argument == "Answer: yes"


def test_the_vocabulary_is_the_5000_most_common_tokens_unless_said_otherwise() -> None:
    assert parse_initialiser("vocabulary").number == 5000
    assert parse_initialiser("vocabulary:200").number == 200
    assert parse_initialiser("uniform").number == 0.5
