"""Deployments applied to a real Prefect server, and run by a real worker."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace

pytestmark = pytest.mark.slow
FILE = Path(__file__).parents[3] / "infra" / "prefect.yaml"
POOL = "testing"


def command(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def deployment(api: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/deployments/name/{name}").raise_for_status().json()
    return found


def wait_for(api: httpx.Client, run: str) -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        found: dict[str, Any] = api.get(f"/flow_runs/{run}").raise_for_status().json()
        if found["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}:
            return found
        time.sleep(0.5)
    raise AssertionError(f"run {run} did not end: {found['state']}")


@pytest.fixture
def tasks(place: JobPlace) -> Path:
    """A folder that holds task files, as a team keeps it."""
    place.task_file("sst2")
    return place.folder


@pytest.fixture
def deployed(runner: FlowRunner, tasks: Path) -> FlowRunner:
    done = command(runner.environment, "deploy", "--file", str(FILE), "--tasks", str(tasks), "--pool", POOL)
    assert done.returncode == 0, done.stderr
    return runner


@pytest.fixture
def worker(deployed: FlowRunner) -> Iterator[FlowRunner]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "worker", "--pool", POOL],
        env={**os.environ, **deployed.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
        cwd=deployed.folder,
        preexec_fn=ignore_interrupts,  # noqa: PLW1509 - it starts no thread
    )
    yield deployed
    process.terminate()
    process.wait(180)


def ignore_interrupts() -> None:
    """As in a job that a script put into the background; the worker must end all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_deploying_again_changes_nothing_and_makes_nothing_twice(
    deployed: FlowRunner, tasks: Path, api: httpx.Client
) -> None:
    before = deployment(api, "retrain/nightly")
    again = command(deployed.environment, "deploy", "--file", str(FILE), "--tasks", str(tasks), "--pool", POOL)
    assert again.returncode == 0, again.stderr
    after = deployment(api, "retrain/nightly")
    assert (after["id"], after["parameters"]) == (before["id"], before["parameters"])
    assert after["parameters"]["parameters"]["tasks"] == [str(tasks)]
    assert [each["schedule"]["cron"] for each in after["schedules"]] == ["0 2 * * *"]
    assert after["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    found = api.post("/deployments/filter", json={"deployments": {"tags": {"all_": ["promptstore"]}}}).json()
    assert {each["name"] for each in found} == {"care", "mirror", "nightly", "on-demand", "on-publish"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("deploy", "--file", str(FILE), "--pool", "wrong", "--pool-type", "docker"),
            "work pool wrong is of type process, not docker; choose another name with --pool",
        ),
        (
            ("deploy", "--file", str(FILE), "--pool-type", "ec2"),
            "work pool type 'ec2' is unknown; it is one of process, docker, kubernetes",
        ),
        (
            ("worker", "--pool", "wrong", "--pool-type", "kubernetes"),
            "a worker of type kubernetes needs the package prefect-kubernetes: pip install prefect-kubernetes",
        ),
    ],
)
def test_a_wrong_work_pool_is_said_in_one_line(
    runner: FlowRunner, api: httpx.Client, arguments: tuple[str, ...], said: str
) -> None:
    assert api.post("/work_pools/", json={"name": "wrong", "type": "process"}).status_code in {201, 409}
    if "kubernetes" in arguments and importlib.util.find_spec("prefect_kubernetes"):
        pytest.skip("its worker is installed here")
    done = command(runner.environment, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {said}"


def test_a_pool_gets_its_template_and_keeps_it_when_deployed_again(
    runner: FlowRunner, tasks: Path, api: httpx.Client
) -> None:
    """Prefect's server checks the template, and the deployments' job variables against it."""
    found = []
    for _ in range(2):
        options = ("--tasks", str(tasks), "--pool", "cluster", "--pool-type", "kubernetes")
        done = command(runner.environment, "deploy", "--file", str(FILE), *options)
        assert done.returncode == 0, done.stderr
        found.append(api.get("/work_pools/cluster").raise_for_status().json())
    assert found[0]["type"] == "kubernetes"
    assert found[0]["base_job_template"]["variables"]["properties"]["gpus"]["default"] == 1
    assert found[1] == found[0]
    assert deployment(api, "maintain/care")["job_variables"] == {"gpus": 0, "device_requests": []}
    run = {"job_variables": {"gpus": -1}}
    refused = api.post(f"/deployments/{deployment(api, 'tune/on-demand')['id']}/create_flow_run", json=run)
    assert refused.status_code == 422
    assert "-1 is less than the minimum of 0" in refused.text


def test_a_schedule_makes_runs(deployed: FlowRunner, api: httpx.Client) -> None:
    asked = {"flow_runs": {"deployment_id": {"any_": [deployment(api, "retrain/nightly")["id"]]}}}
    deadline = time.monotonic() + 240
    while not (runs := api.post("/flow_runs/filter", json=asked).raise_for_status().json()):
        assert time.monotonic() < deadline, "Prefect's scheduler made none"
        time.sleep(0.5)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    assert all(run["auto_scheduled"] for run in runs)


def test_a_missing_file_is_named(runner: FlowRunner) -> None:
    done = command(runner.environment, "deploy", "--file", "nowhere.yaml")
    assert done.returncode == 1
    assert "there is no nowhere.yaml" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("parameters: {parameters: 5}", "Prefect's server refuses maintain/refused: it answered 4"),
        ("parameters: 5", "deployments.0.parameters: "),
        ("triggers: [{expect: [a], within: -5}]", "refused: triggers.0."),
    ],
)
def test_a_refused_deployment_is_said_in_one_line(runner: FlowRunner, tmp_path: Path, wrong: str, said: str) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(
        "deployments:\n"
        "  - name: refused\n"
        "    entrypoint: flows.maintain.maintain\n"
        "    work_pool: {name: testing}\n"
        f"    {wrong}\n"
    )
    done = command(runner.environment, "deploy", "--file", str(file), "--pool", POOL)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"{file}: {said}" in done.stderr


def test_a_worker_runs_what_is_deployed_and_an_overlapping_run_is_cancelled(
    worker: FlowRunner, place: JobPlace, api: httpx.Client
) -> None:
    found = deployment(api, "retrain/nightly")
    asked = {**found["parameters"]["parameters"], "overrides": {**QUICK, "steps": 48}}
    runs = [
        api.post(f"/deployments/{found['id']}/create_flow_run", json={"parameters": {"parameters": asked}})
        .raise_for_status()
        .json()["id"]
        for _ in range(2)
    ]
    ended = [wait_for(api, run) for run in runs]
    assert sorted(run["state_type"] for run in ended) == ["CANCELLED", "COMPLETED"], [run["state"] for run in ended]
    (cancelled,) = (run for run in ended if run["state_type"] == "CANCELLED")
    assert "concurrency limit" in cancelled["state"]["message"].lower()
    assert place.store().resolve("sst2").number == 1
