"""Retraining and care, as processes against a real Prefect server."""

import json
import signal
import sqlite3
import time
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
from promptstore.tuning.job import tune_tasks

pytestmark = pytest.mark.slow
OVERRIDES = {**QUICK, "steps": 48}
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
    assert first.result["promoted"] == ["sst2:1", "mood:1"]
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
    assert third.result["promoted"] == []
    assert "gate of sst2:2 for production, compared with sst2:1: fail" in third.result["refused"][0]
    store = place.store()
    assert store.resolve("sst2").number == 1
    fourth = runner.run("retrain", **asked)
    assert fourth.result["tuned"] is None, "the same data are not tuned again because the gate refused them"


def test_a_version_that_was_made_and_never_judged_is_promoted_by_the_next_retraining(
    place: JobPlace, runner: FlowRunner, model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two, two hours ago, when MLflow was away as well: it is told now."""
    with monkeypatch.context() as patch:
        patch.setattr(JobPlace, "mlflow_uri", property(lambda _: "http://127.0.0.1:9"))
        tools = place.tools(model, "retrain-0123")
    store = PromptStore(
        Ledger.open(tools.store.ledger.objects, actor="me", clock=lambda: HOURS_AGO), tools.store.ledger.objects
    )
    tune_tasks([place.task("sst2")], job="retrain-0123", tools=replace(tools, store=store), overrides=OVERRIDES)
    asked = {"tasks": [str(place.folder / "sst2.toml")], "overrides": OVERRIDES}
    ended = runner.run("retrain", **asked)
    assert ended.code == 0, ended.error
    assert (ended.result["tuned"], ended.result["promoted"]) == (None, ["sst2:1"])
    assert place.store().resolve("sst2").number == 1
    client = connect(place.mlflow_uri)
    experiment = client.get_experiment_by_name("promptstore/sst2").experiment_id
    (run,) = client.search_runs([experiment], filter_string="tags.role = 'prompt'")
    assert run.data.tags["digest"] == place.store().resolve("sst2").digest


def promotions(api: httpx.Client) -> dict[str, str]:
    """What the newest retraining wants promoted, and the state of each."""
    newest = {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_DESC", "limit": 1}
    parents = [run["id"] for run in api.post("/flow_runs/filter", json=newest).raise_for_status().json()]
    children = {"flow_runs": {"parent_flow_run_id": {"any_": parents}}, "flows": {"name": {"any_": ["promote"]}}}
    runs = api.post("/flow_runs/filter", json=children).raise_for_status().json()
    return {run["parameters"]["parameters"]["ref"]: run["state_type"] for run in runs}


def test_a_retraining_that_is_stopped_waits_for_nobody(place: JobPlace, runner: FlowRunner, api: httpx.Client) -> None:
    asked = [str(place.task_file(name)) for name in ("sst2", "mood")]
    started = runner.start("retrain", tasks=asked, overrides=OVERRIDES, approval="person")
    paused = {"sst2:1": "PAUSED", "mood:1": "PAUSED"}
    deadline = time.monotonic() + 200
    while started.process.poll() is None and promotions(api) != paused and time.monotonic() < deadline:
        time.sleep(0.5)
    assert promotions(api) == paused
    started.process.send_signal(signal.SIGTERM)
    ended = started.wait(30)
    assert ended.code != 0, ended.error
    assert promotions(api) == {"sst2:1": "CANCELLED", "mood:1": "CANCELLED"}, ended.error
    assert all(not place.store().state.task(name).aliases for name in ("sst2", "mood"))


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
