"""A new base model, met by a retraining, as a process against a real Prefect server."""

import json
from pathlib import Path

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace, write_tiny_model

pytestmark = pytest.mark.slow


def test_prompts_move_to_a_wider_base_in_one_release(
    model: FrozenModel, model_folder: Path, place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    file = str(place.task_file("sst2", rows=80))
    place.tune(model, place.task("sst2"), job="first", steps=12)
    place.store().promote("sst2:1", force=True, reason="first")
    wide = write_tiny_model(place.folder / "wide", hidden_size=64)
    asked = {"old_model": str(model_folder), "model": str(wide), "tasks": [file], "overrides": dict(QUICK)}
    ended = runner.run("retrain", **asked, gate={"max_drop": 1, "alpha": 1e-9})
    assert ended.code == 0, ended.error
    assert ended.result["upgraded"] == ["sst2@production -> sst2:2"]
    assert ended.result["tuned"] is None
    assert ended.result["due"][0]["fresh"] == "sst2:2 rests on the same data, task and model"
    store = place.store()
    assert store.pull("sst2", for_model=None).prompt.hidden_size == 64
    assert store.history("sst2")[-1].reason == "upgrade to base model wide"
    wanted = {"artifacts": {"key": {"any_": ["upgrade"]}}, "sort": "CREATED_DESC"}
    (row,) = json.loads(api.post("/artifacts/filter", json=wanted).raise_for_status().json()[0]["data"])
    assert (row["alias"], row["in its place"], row["gate"]) == ("production", "sst2:1", "pass")
    assert row["start"] == "examples: hidden size 64, was 32"
