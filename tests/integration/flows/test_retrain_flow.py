"""Retraining and care, as processes against a real Prefect server."""

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from promptstore.errors import NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.tracking.mlflow_sink import connect
from promptstore.tuning.job import JobTools, tune_tasks

pytestmark = pytest.mark.slow
OVERRIDES = {**QUICK, "steps": 48}
DEPLOYMENTS = Path(__file__).parents[3] / "infra" / "prefect.yaml"
HOURS_AGO = datetime.now(UTC) - timedelta(hours=2)


def artifact(api: httpx.Client, key: str) -> Any:
    asked = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
    return json.loads(api.post("/artifacts/filter", json=asked).raise_for_status().json()[0]["data"])


def test_retraining_follows_the_data_and_leaves_production_to_the_gate(
    place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    files = [str(place.task_file(name)) for name in ("sst2", "mood")]
    asked = {"tasks": files, "overrides": OVERRIDES}
    first = runner.run("retrain", **asked)
    assert first.code == 0, first.error
    assert first.result["promotions"]["promoted"] == ["sst2:1", "mood:1"]
    second = runner.run("retrain", **asked)
    assert second.code == 0, second.error
    assert second.result["tuned"] is None
    assert [row["why"] for row in artifact(api, "due")] == [
        "sst2:1 rests on the same data, task and model",
        "mood:1 rests on the same data, task and model",
    ]
    place.task_file("sst2", is_mislabelled=True)
    third = runner.run("retrain", **asked)
    assert third.code == 0, third.error
    assert [each["version"] for each in third.result["tuned"]["tasks"]] == ["sst2:2"]
    assert third.result["promotions"]["promoted"] == []
    assert "gate of sst2:2 for production, compared with sst2:1: fail" in third.result["promotions"]["refused"][0]
    store = place.store()
    assert store.resolve("sst2").number == 1
    fourth = runner.run("retrain", **asked)
    assert fourth.result["tuned"] is None, "the same data are not tuned again because the gate refused them"


def left_by_a_stopped_retraining(tools: JobTools, place: JobPlace) -> None:
    """sst2:1, made two hours ago."""
    objects = tools.store.ledger.objects
    store = PromptStore(Ledger.open(objects, actor="me", clock=lambda: HOURS_AGO), objects)
    tune_tasks([place.task("sst2")], job="retrain-0123", tools=replace(tools, store=store), overrides=OVERRIDES)


def test_a_version_that_was_made_and_never_judged_is_promoted_by_the_next_retraining(
    place: JobPlace, runner: FlowRunner, model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two, two hours ago, when MLflow was away as well: it is told now."""
    with monkeypatch.context() as patch:
        patch.setattr(JobPlace, "mlflow_uri", property(lambda _: "http://127.0.0.1:9"))
        tools = place.tools(model, "retrain-0123")
    left_by_a_stopped_retraining(tools, place)
    asked = {"tasks": [str(place.folder / "sst2.toml")], "overrides": OVERRIDES}
    ended = runner.run("retrain", **asked)
    assert ended.code == 0, ended.error
    assert (ended.result["tuned"], ended.result["promotions"]["promoted"]) == (None, ["sst2:1"])
    assert place.store().resolve("sst2").number == 1
    client = connect(place.mlflow_uri)
    experiment = client.get_experiment_by_name("promptstore/sst2").experiment_id
    (run,) = client.search_runs([experiment], filter_string="tags.role = 'prompt'")
    assert run.data.tags["digest"] == place.store().resolve("sst2").digest


def waiting(api: httpx.Client, name: str) -> list[dict[str, Any]]:
    """The promotions of that name that a deployment's worker is to begin."""
    found = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "name": {"any_": [name]}}}
    runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=found).raise_for_status().json()
    return runs


def test_people_are_asked_in_a_run_of_its_own_and_once(
    place: JobPlace, runner: FlowRunner, api: httpx.Client, model: FrozenModel
) -> None:
    file = str(place.task_file("sst2"))
    left_by_a_stopped_retraining(place.tools(model, "retrain-0123"), place)
    asked = {"tasks": [file], "overrides": OVERRIDES, "approval": "person", "gate": {"min_recall": 0.1}}
    asked["alias"] = "asked-about"  # the server's other runs are not
    if (deployed := api.get("/deployments/name/promote/on-demand")).is_success:
        api.delete(f"/deployments/{deployed.json()['id']}").raise_for_status()
    refused = runner.run("retrain", **asked)
    assert refused.code == 1
    assert "approval=person needs the deployment promote/on-demand" in refused.error
    done = runner.command("deploy", "--file", str(DEPLOYMENTS), "--pool", "people")
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        ended = runner.run("retrain", **asked)
        assert ended.code == 0, ended.error
        assert ended.result["promotions"] == {"promoted": [], "refused": [], "asked": ["sst2:1"]}
    (run,) = waiting(api, "promote sst2:1 to asked-about")
    given = run["parameters"]["parameters"]
    assert (given["task_file"], given["approval"], given["gate"]["min_recall"]) == (file, "person", 0.1)
    assert not place.store().state.task("sst2").aliases


def test_care_expires_deletes_and_brings_catalogue_and_copy_up_to_date(
    model: FrozenModel, place: JobPlace, runner: FlowRunner
) -> None:
    for number in range(4):
        place.tune(model, place.task("sst2"), job=f"job-{number}", seed=number, steps=12)
    store = place.store()
    store.promote("sst2:1", force=True, reason="test")
    copy = place.folder / "copy"
    ended = runner.run("maintain", keep_newest=1, keep_days=0, keep_previous=0, grace_hours=0, copy_to=str(copy))
    assert ended.code == 0, ended.error
    assert ended.result["expired"] == ["sst2:2", "sst2:3"]
    assert ended.result["refused"] == ["sst2:1 (production)"]
    assert ended.result["freed_bytes"] > 0
    store.refresh()
    assert store.resolve("sst2").number == 1
    with pytest.raises(NotFoundError, match="expired"):
        store.resolve("sst2:2")
    assert store.pull("sst2:4", for_model=model.fingerprint).prompt.num_virtual_tokens == 8
    with sqlite3.connect(place.settings.state_dir / "catalog.db") as catalog:
        assert catalog.execute("select count(*) from sqlite_master").fetchone()[0] > 0
    other = JobPlace(place.folder)
    assert (copy / "store.json").read_bytes() == (Path(other.settings.store) / "store.json").read_bytes()


def test_nothing_is_deleted_in_a_damaged_store(model: FrozenModel, place: JobPlace, runner: FlowRunner) -> None:
    for number in range(2):
        place.tune(model, place.task("sst2"), job=f"job-{number}", seed=number, steps=12)
    payload = place.store().resolve("sst2:2").payload
    (damaged,) = Path(place.settings.store).rglob(f"{payload}.*")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    ended = runner.run("maintain", keep_newest=1, keep_days=0, keep_previous=0, grace_hours=0)
    assert ended.code == 1
    assert "Nothing was expired or deleted" in ended.error.strip().splitlines()[-1]
    assert not place.store().resolve("sst2:1").is_expired
