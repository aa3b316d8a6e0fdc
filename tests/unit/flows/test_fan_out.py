"""What a fan-out may ask for, and who gets to hear of it."""

import pytest
from pydantic import ValidationError

from flows.parameters import FanOut, RetrainParameters, TuneParameters


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2])
def test_a_fit_takes_a_share_of_a_gpu_or_whole_ones(gpus: float) -> None:
    assert FanOut(gpus_per_fit=gpus).gpus_per_fit == gpus


def test_one_gpu_and_a_half_is_refused_because_ray_could_not_give_it() -> None:
    with pytest.raises(ValidationError, match=r"1\.5 GPUs: more than one must be a whole number"):
        FanOut(gpus_per_fit=1.5)


def test_retraining_spreads_as_it_was_asked_to() -> None:
    parameters = RetrainParameters.model_validate({"tasks": ["a.toml"], "fan_out": {"gpus_per_fit": 0.5}})
    assert parameters.tuning(["a.toml"], "job").fan_out == FanOut(gpus_per_fit=0.5)


def test_tasks_stay_together_unless_a_fan_out_is_asked_for() -> None:
    assert TuneParameters(tasks=["a.toml"]).fan_out is None
