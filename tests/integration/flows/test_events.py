"""Events on a real Prefect server: what is published starts a promotion, and people hear of what waits and fails."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.testing.receiver import Receiver, receiver

pytestmark = pytest.mark.slow
FILE = Path(__file__).parents[3] / "infra" / "prefect.yaml"
POOL = "events"


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """Where people are told."""
    with receiver() as found:
        yield found


@pytest.fixture
def deployed(runner: FlowRunner, place: JobPlace, hook: Receiver) -> FlowRunner:
    place.task_file("sst2")
    place.store()
    options = ("--tasks", str(place.folder), "--pool", POOL, "--notify", hook.url, "--promote-on-publish")
    done = runner.command("deploy", "--file", str(FILE), *options)
    assert done.returncode == 0, done.stderr
    assert "automation promptstore-approval-waiting" in done.stdout
    return runner


def eventually(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen")


def runs_of(api: httpx.Client, deployment: str) -> list[dict[str, Any]]:
    found = api.get(f"/deployments/name/{deployment}").raise_for_status().json()
    asked = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}}}
    runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=asked).raise_for_status().json()
    return runs


def told(hook: Receiver, text: str) -> str | None:
    return next((said for each in list(hook.received) if text in (said := json.loads(each.body)["text"])), None)


def test_a_published_version_starts_a_promotion_that_waits_for_a_person_and_moves_production(
    model: FrozenModel, place: JobPlace, deployed: FlowRunner, api: httpx.Client, hook: Receiver
) -> None:
    assert deployed.command("announce", "--once").stderr.endswith("0 event(s) told\n")
    place.tune(model, place.task("sst2"), job="good", **QUICK)
    for _ in range(2):  # the second time as after a crash that lost the place: Prefect is told the same again
        (place.settings.state_dir / "outbox" / "prefect" / "cursor.json").unlink(missing_ok=True)
        done = deployed.command("announce", "--once")
        assert done.stderr.endswith("1 event(s) told\n"), done.stderr
    (run,) = eventually(lambda: runs_of(api, "promote/on-publish"), "a run started by the event")
    asked = run["parameters"]["parameters"]
    assert (asked["ref"], asked["approval"], asked["task_file"]) == ("sst2:1", "person", str(place.folder))
    assert asked["reason"] == "published in commit 1"
    worker = subprocess.Popen(
        [sys.executable, "-m", "flows", "worker", "--pool", POOL],
        env={**os.environ, **deployed.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
        cwd=deployed.folder,
    )
    try:
        said = eventually(lambda: told(hook, "waits for your answer"), "the notification")
        assert said.startswith("promptstore: promote sst2:1 to production waits for your answer\n")
        assert str(run["id"]) in said
        assert api.get(f"/flow_runs/{run['id']}").json()["state"]["name"] == "Suspended", "nobody waits, on no device"
        time.sleep(1)  # Prefect suspends first and stores the form's schema after that
        answer = {"approve": True, "approver": "Ada", "reason": "I read the figures"}
        # Prefect on SQLite says "database is locked" now and then to several writers.
        resume = f"/flow_runs/{run['id']}/resume"
        eventually(lambda: api.post(resume, json={"run_input": answer}).is_success, "taking the answer")
        eventually(
            lambda: api.get(f"/flow_runs/{run['id']}").json()["state_type"] == "COMPLETED", "the end of the promotion"
        )
    finally:
        worker.terminate()
        worker.wait(180)
    version = place.store().resolve("sst2")
    assert version.number == 1
    assert [each.kind for each in version.attestations] == ["gate", "approval"], "the verdict was found, not made again"
    assert len(runs_of(api, "promote/on-publish")) == 1, "what Prefect heard twice it heeded once"
    late = deployed.run("promote", ref="sst2:1")
    assert late.code == 0, late.error
    asked = {"flow_runs": {"name": {"any_": ["promote sst2:1 to production"]}}, "sort": "START_TIME_DESC"}
    state = api.post("/flow_runs/filter", json=asked).json()[0]["state"]
    assert (state["name"], state["message"]) == ("Skipped", "skipped: production is sst2:1 already")


def test_a_failed_run_is_told_with_its_reason(deployed: FlowRunner, api: httpx.Client, hook: Receiver) -> None:
    found = api.get("/deployments/name/maintain/care").raise_for_status().json()
    run = api.post(f"/deployments/{found['id']}/create_flow_run", json={}).raise_for_status().json()
    state = {"type": "FAILED", "message": "the store is damaged"}
    api.post(f"/flow_runs/{run['id']}/set_state", json={"state": state, "force": True}).raise_for_status()
    said = eventually(lambda: told(hook, "failed"), "the notification")
    assert said.startswith(f"promptstore: maintain failed\n{run['name']}: the store is damaged\n")


def test_a_block_that_does_not_exist_is_named(runner: FlowRunner, tmp_path: Path) -> None:
    done = runner.command("deploy", "--file", str(FILE), "--pool", POOL, "--notify", "slack-webhook/oncall")
    assert done.returncode == 1
    assert "--notify slack-webhook/oncall: there is no such block" in done.stderr.splitlines()[-1]
