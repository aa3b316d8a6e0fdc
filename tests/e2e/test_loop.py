"""The loop that runs itself, on the local stack: real PostgreSQL, S3, MLflow, Prefect, a worker, a serving replica."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from infra.stack.rig import StackRig, stack_rig
from promptstore.settings import load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.fault_proxy import FaultProxy, HttpFault, ProxiedRequest, Refuse, behave, fault_proxy
from promptstore.testing.job_place import FROM_TOKENS, JobPlace
from promptstore.testing.servers import MissingServerError
from promptstore.tracking.mlflow_sink import connect
from promptstore.wiring import open_prompt_store

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.timeout(1800)]
PATIENCE_S = 300.0
# A retraining every minute, no limit of runs: what overlaps is told apart by the job's own lock.
DEPLOYMENT = """
deployments:
  - name: minutely
    entrypoint: flows.retrain.retrain
    parameters:
      parameters:
        tasks: ["{{{{ $PROMPTSTORE_TASKS }}}}"]
        overrides: {overrides}
        approval: {approval}
        gate: {gate}
    schedules:
      - interval: 60
    work_pool: &pool
      name: "{{{{ $PROMPTSTORE_WORK_POOL }}}}"
      job_variables:
        env:
          PROMPTSTORE_S3_ENDPOINT: {s3}
          PROMPTSTORE_MLFLOW_URI: {mlflow}
  - name: on-demand
    entrypoint: flows.promote.promote
    work_pool: *pool
"""
LONG_FIT = 1500  # steps: about ten seconds, in which something can be killed


@dataclass(frozen=True)
class Loop:
    """The stack, two tasks beside it, Prefect's own HTTP interface, and proxies between flows and S3 and MLflow."""

    rig: StackRig
    tasks: JobPlace
    api: httpx.Client
    s3: FaultProxy
    mlflow: FaultProxy

    def deploy(self, *, approval: str, steps: int = 48, gate: Mapping[str, float] = MappingProxyType({})) -> None:
        file = self.tasks.folder.with_name("deployment.yaml")
        overrides = json.dumps({**FROM_TOKENS, "steps": steps, "evaluate_every": steps // 3})
        proxies = {"s3": self.s3.endpoint, "mlflow": self.mlflow.endpoint}
        asked = {"overrides": overrides, "approval": approval, "gate": json.dumps(dict(gate))}
        file.write_text(DEPLOYMENT.format(**asked, **proxies))
        self.rig.shell(f"python -m flows deploy --file {file} --tasks {self.tasks.folder}")

    def store(self) -> PromptStore:
        return open_prompt_store(load_settings(), create=False)

    def versions(self, task: str) -> int:
        state = self.store().state
        return len(state.tasks[task].versions) if task in state.tasks else 0

    def is_in_production(self, task: str, number: int) -> bool:
        state = self.store().state
        return task in state.tasks and state.tasks[task].aliases.get("production") == number

    def runs(self, flow: str, state: str) -> list[dict[str, Any]]:
        asked = {
            "flows": {"name": {"any_": [flow]}},
            "flow_runs": {"state": {"type": {"any_": [state]}}},
            "sort": "START_TIME_DESC",
        }
        found: list[dict[str, Any]] = self.api.post("/flow_runs/filter", json=asked).raise_for_status().json()
        return found

    def why(self) -> dict[str, str]:
        """What the newest retraining said of each task."""
        asked = {"artifacts": {"key": {"any_": ["due"]}}, "sort": "CREATED_DESC", "limit": 1}
        found = self.api.post("/artifacts/filter", json=asked).raise_for_status().json()
        return {row["task"]: row["why"] for row in json.loads(found[0]["data"])} if found else {}

    def kill(self, service: str) -> None:
        """As a machine's end would: the service and everything it started, at once."""
        for process in self.rig.processes[service]:
            with suppress(ProcessLookupError):  # it ended because an earlier one did
                os.kill(process.pid, signal.SIGKILL)

    def approve(self, ref: str) -> None:
        """Answer the form that waits for `ref`, as Prefect's page does."""

        def paused() -> list[str]:
            runs = self.runs("promote", "PAUSED")
            return [run["id"] for run in runs if run["parameters"]["parameters"]["ref"] == ref]

        (run,) = until(f"{ref} waits for approval", paused)
        time.sleep(1)  # Prefect pauses first and stores the form's schema after that
        said = {"approve": True, "approver": "Ada", "reason": "the figures are good"}
        self.api.post(f"/flow_runs/{run}/resume", json={"run_input": said}).raise_for_status()


def until(what: str, found: Callable[[], Any]) -> Any:
    """What `found` gives once it is anything; a server that is being restarted counts as nothing."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    try:
        with stack_rig() as rig, pytest.MonkeyPatch.context() as patch:
            rig.up()
            for name, value in rig.variables.items():
                patch.setenv(name, value)
            tasks = JobPlace(rig.place.folder.with_name("tasks"))
            with (
                httpx.Client(base_url=f"{rig.settings.url('prefect')}/api", timeout=30) as api,
                fault_proxy(rig.settings.url("s3")) as s3,
                fault_proxy(rig.settings.url("mlflow")) as mlflow,
            ):
                yield Loop(rig, tasks, api, s3, mlflow)
    except MissingServerError as error:
        pytest.skip(str(error))


def test_retraining_runs_itself_from_first_version_to_rollback(loop: Loop) -> None:
    for task in ("sst2", "mood"):
        loop.tasks.task_file(task)
    loop.deploy(approval="person")
    for task in ("sst2", "mood"):
        loop.approve(f"{task}:1")
        until(f"{task}:1 is in production", partial(loop.is_in_production, task, 1))
        assert loop.rig.answered_version(task) == 1

    fresh = {task: f"{task}:1 rests on the same data, task and model" for task in ("sst2", "mood")}
    until("a run finds nothing due and says why", lambda: loop.why() == fresh)

    loop.tasks.task_file("sst2", is_mislabelled=True)
    until("the changed task is tuned", lambda: loop.versions("sst2") == 2)
    until("the gate judges it", lambda: loop.store().resolve("sst2:2").attestations)
    assert not loop.store().resolve("sst2:2").has_passed_gate
    assert loop.why()["mood"] == fresh["mood"]
    until("a run finds nothing due again", lambda: loop.why().get("sst2", "").startswith("sst2:2 rests on the same"))
    assert loop.is_in_production("sst2", 1)
    assert (loop.versions("sst2"), loop.versions("mood")) == (2, 1)

    loop.tasks.task_file("sst2", seed=7)
    loop.approve("sst2:3")
    until("the better one is in production", partial(loop.is_in_production, "sst2", 3))
    until("the replica switches", lambda: loop.rig.answered_version("sst2") == 3)
    (approval,) = (each for each in loop.store().resolve("sst2:3").attestations if each.kind == "approval")
    assert dict(approval.body)["approver"] == "Ada"

    loop.rig.shell("promptstore rollback sst2 -m 'worse on Mondays'")
    until("the replica returns", lambda: loop.rig.answered_version("sst2") == 1)
    loop.rig.shell("promptstore verify")  # fails unless all is well


@pytest.mark.parametrize("victim", ["worker", "prefect"])
def test_what_is_killed_during_a_fit_costs_no_version_and_makes_none_twice(loop: Loop, victim: str) -> None:
    before = begin_a_long_fit(loop)
    loop.kill(victim)
    loop.rig.up()
    require_one_more(loop, before)


def test_mlflow_killed_while_it_logs_costs_nothing(loop: Loop) -> None:
    with killed_at(loop, "mlflow", loop.mlflow, lambda asked: asked.path.endswith("/runs/log-batch")) as killed:
        before = begin_a_long_fit(loop)
        until("MLflow is killed", lambda: killed)
    loop.rig.up()
    require_one_more(loop, before)


def test_postgresql_killed_while_a_version_is_published_costs_nothing(loop: Loop) -> None:
    is_publishing = lambda asked: "/manifests/" in asked.path and asked.method == "PUT"  # noqa: E731
    with killed_at(loop, "postgres", loop.s3, is_publishing) as killed:
        before = begin_a_long_fit(loop)
        until("the database is killed", lambda: killed)
    loop.rig.up()
    require_one_more(loop, before)


def test_s3_that_refuses_for_a_minute_costs_nothing(loop: Loop) -> None:
    began: list[float] = []

    def script(request: ProxiedRequest) -> HttpFault | None:
        if "/manifests/" in request.path and request.method == "PUT" and not began:
            began.append(time.monotonic())
        return Refuse(503, "SlowDown") if began and time.monotonic() < began[0] + 60 else None

    loop.s3.script = script
    try:
        require_one_more(loop, begin_a_long_fit(loop))
    finally:
        loop.s3.script = behave
    assert loop.s3.faults > 0


@contextmanager
def killed_at(
    loop: Loop, service: str, proxy: FaultProxy, is_moment: Callable[[ProxiedRequest], bool]
) -> Iterator[list[str]]:
    """Once a request through `proxy` is the one, `service` dies and the request goes on. The paths of such requests."""
    killed: list[str] = []

    def script(asked: ProxiedRequest) -> HttpFault | None:
        if is_moment(asked) and not killed:
            killed.append(asked.path)
            loop.kill(service)
        return None

    proxy.script = script
    try:
        yield killed
    finally:
        proxy.script = behave


def begin_a_long_fit(loop: Loop) -> int:
    """New data for a task, and a fit on it that goes on; how many versions there were before."""
    before = loop.versions("mood")
    loop.tasks.task_file("sst2") if not loop.versions("sst2") else None
    loop.tasks.task_file("mood", seed=100 + before)
    jobs = loop.rig.place.data("state") / "jobs"
    known = set(jobs.glob("*"))
    loop.deploy(approval="automatic", steps=LONG_FIT, gate={"max_drop": 1, "alpha": 0.0001})  # the data are luck
    until("a fit is under way", lambda: any((job / "checkpoint").exists() for job in set(jobs.glob("*")) - known))
    return before


def require_one_more(loop: Loop, before: int) -> None:
    """In the end the data gave one version, in production, with its run in MLflow whole, and the store is sound."""
    number = before + 1
    until("the version is in production", partial(loop.is_in_production, "mood", number))
    until("a run finds nothing due", lambda: loop.why().get("mood", "").startswith(f"mood:{number} rests on the same"))
    assert loop.versions("mood") == number
    store = loop.store()
    version = store.resolve(f"mood:{number}")
    run_id = store.manifest(version.digest).provenance.mlflow_run
    assert run_id is not None
    client = connect(loop.rig.settings.url("mlflow"))
    until("the run has its digest", lambda: client.get_run(run_id).data.tags.get("digest") == version.digest)
    assert max(point.step for point in client.get_metric_history(run_id, "validation/accuracy")) == LONG_FIT
    assert loop.rig.answered_version("mood") == number
    loop.rig.shell("promptstore verify")
