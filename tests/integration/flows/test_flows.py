"""The flows, as processes against a real Prefect server, a real MLflow database and a store on disk."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from promptstore.errors import RefusedError
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.tracking.mlflow_sink import connect

pytestmark = pytest.mark.slow

TUNED = {**QUICK, "steps": 48}


def newest_runs(api: httpx.Client, flow: str) -> list[dict[str, Any]]:
    asked = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
    runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=asked).raise_for_status().json()
    return runs


def artifacts(api: httpx.Client, run: str) -> dict[str, Any]:
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    found = api.post("/artifacts/filter", json=asked).raise_for_status().json()
    return {each["key"]: each["data"] for each in found}


def test_tune_publishes_says_so_on_prefects_page_and_repeats_without_effect(
    place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    files = [str(place.task_file("sst2")), str(place.task_file("mood"))]
    first = runner.run("tune", tasks=files, job="both", overrides=dict(QUICK))
    assert first.code == 0, first.error
    again = runner.run("tune", tasks=files, job="both", overrides=dict(QUICK))
    assert again.code == 0, again.error
    assert again.result["tasks"] == first.result["tasks"]
    assert {name: len(task.versions) for name, task in place.store().state.tasks.items()} == {"sst2": 1, "mood": 1}
    run = newest_runs(api, "tune")[0]
    assert (run["state_type"], run["name"]) == ("COMPLETED", "tune sst2, mood")
    table = json.loads(artifacts(api, run["id"])["tuned-prompts"])
    assert [row["version"] for row in table] == ["sst2:1", "mood:1"]
    assert connect(place.mlflow_uri).get_run(table[0]["MLflow run"]).data.tags["version"] == "sst2:1"


def test_promote_gates_refuses_the_worse_and_keeps_production(
    model: FrozenModel, place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    file = str(place.task_file("sst2"))
    place.tune(model, place.task("sst2"), job="good", **TUNED)
    place.tune(model, place.task("sst2", is_mislabelled=True), job="bad", **TUNED)
    good = runner.run("promote", ref="sst2:1", task_file=file, reason="first")
    assert good.code == 0, good.error
    assert good.result["number"] == 1
    bad = runner.run("promote", ref="sst2:2", task_file=file)
    assert bad.code == 1
    assert bad.result is None
    last_line = bad.error.strip().splitlines()[-1]
    assert last_line.startswith("error: gate of sst2:2 for production, compared with sst2:1: fail (accuracy")
    store = place.store()
    assert store.resolve("sst2").number == 1
    assert [move.reason for move in store.history("sst2")] == ["first"]
    with pytest.raises(RefusedError, match="has no passing gate"):
        store.promote("sst2:2")
    run = newest_runs(api, "promote")[0]
    assert run["state_type"] == "FAILED"
    assert "no worse than production" in artifacts(api, run["id"])["gate"]


def wait_until_paused(api: httpx.Client, ref: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for run in newest_runs(api, "promote"):
            if run["state_type"] == "PAUSED" and run["parameters"]["parameters"]["ref"] == ref:
                return str(run["id"])
        time.sleep(0.5)
    raise AssertionError("the flow never paused")


@pytest.mark.parametrize(("answer", "number"), [(True, 1), (False, None)])
def test_a_person_decides_on_prefects_page_and_the_log_keeps_who_and_why(
    model: FrozenModel, place: JobPlace, runner: FlowRunner, api: httpx.Client, answer: bool, number: int | None
) -> None:
    place.tune(model, place.task("sst2"), job="good", **QUICK)
    file = str(place.task_file("sst2"))
    started = runner.start("promote", ref="sst2:1", task_file=file, approval="person", approval_poll_s=1)
    run = wait_until_paused(api, "sst2:1")
    time.sleep(1)  # Prefect pauses first and stores the form's schema after that
    said = {"approve": answer, "approver": "Ada", "reason": "I read the figures"}
    api.post(f"/flow_runs/{run}/resume", json={"run_input": said}).raise_for_status()
    ended = started.wait()
    store = place.store()
    approvals = [each for each in store.resolve("sst2:1").attestations if each.kind == "approval"]
    if number is None:
        assert ended.code == 1
        assert "Ada declined sst2:1 for production: I read the figures" in ended.error
        assert "production" not in store.state.task("sst2").aliases
        assert [each.body["approved"] for each in approvals] == [False]
        return
    assert ended.code == 0, ended.error
    assert store.resolve("sst2").number == number
    assert [dict(each.body) for each in approvals] == [
        {"approved": True, "approver": "Ada", "reason": "I read the figures", "alias": "production"}
    ]


def test_nobody_answering_in_time_leaves_the_alias_where_it_is(
    model: FrozenModel, place: JobPlace, runner: FlowRunner
) -> None:
    place.tune(model, place.task("sst2"), job="good", **QUICK)
    asked = {"approval": "person", "approval_poll_s": 1, "approval_timeout_s": 2}
    ended = runner.run("promote", ref="sst2:1", task_file=str(place.task_file("sst2")), **asked)
    assert ended.code == 1
    assert "nobody answered for sst2:1 within 2 s" in ended.error
    assert "production" not in place.store().state.task("sst2").aliases


def test_a_mistake_in_the_parameters_is_one_line(place: JobPlace, runner: FlowRunner) -> None:
    ended = runner.run("promote", ref="sst2:1", aproval="person")
    assert ended.code == 1
    assert ended.error.strip().splitlines()[-1].endswith("aproval: Extra inputs are not permitted")


def test_a_prefect_server_that_is_not_there_is_said_in_one_line(place: JobPlace, runner: FlowRunner) -> None:
    nowhere = FlowRunner(place.folder, {**runner.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    ended = nowhere.run("tune", tasks=[str(place.task_file("sst2"))])
    assert ended.code == 1
    assert "http://127.0.0.1:9/api" in ended.error.strip().splitlines()[-1]
    assert not Path(place.settings.state_dir / "jobs").exists()
