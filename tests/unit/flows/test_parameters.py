"""What flows are called with: every flow that gates carries the whole policy to its gate."""

from dataclasses import fields

import pytest
from pydantic import ValidationError

from flows.parameters import (
    GateParameters,
    MirrorParameters,
    PromoteParameters,
    RetrainParameters,
    UpgradeBaseParameters,
)
from promptstore.tuning.gate import GatePolicy

POLICY = GatePolicy(0.5, 0.01, 0.0, 0.2, 5, ("language", "source"), 0.3, 30.0, 1.5, 20.0)


def test_every_rule_of_the_gate_is_a_parameter_with_its_default() -> None:
    assert [each.name for each in fields(GatePolicy)] == list(GateParameters.model_fields)
    assert GateParameters().policy() == GatePolicy()
    assert GateParameters.model_validate(POLICY.to_json()).policy() == POLICY


def test_every_flow_that_gates_passes_the_policy_on() -> None:
    given = {"gate": POLICY.to_json()}
    promote = PromoteParameters.model_validate({"ref": "sst2:1", **given})
    retrain = RetrainParameters.model_validate({"tasks": ["sst2"], **given})
    mirror = MirrorParameters.model_validate(given)
    upgrade = UpgradeBaseParameters.model_validate({"old_model": "old", **given})
    assert promote.gate.policy() == POLICY
    assert retrain.promotion("sst2:1", None, "due").gate.policy() == POLICY
    assert mirror.promotion("sst2:1", "production").gate.policy() == POLICY
    assert upgrade.request().policy == POLICY
    assert PromoteParameters.model_validate(promote.model_dump(mode="json")) == promote


def test_a_policy_that_makes_no_sense_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="rule slices of the gate must be given with min_slice_accuracy"):
        RetrainParameters.model_validate({"tasks": ["sst2"], "gate": {"min_slice_accuracy": 0.5}})
