"""Tuning spread over a real Ray cluster, with Prefect on PostgreSQL, and a node that dies in the midst of a fit."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.server import PrefectServer, prefect_server
from promptstore.objects.local import LocalObjectStore
from promptstore.store.verify import verify
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.testing.servers import MissingServerError, PostgresServer, RayCluster, RayNode, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TASKS = ("a", "b", "c")
# Long enough on the tiny model to be in the midst of when the first step was checkpointed.
LONG = {**QUICK, "steps": 600, "evaluate_every": 300}


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[PrefectServer]:
    """On PostgreSQL: on SQLite, workers that report at once meet a locked database."""
    database = postgres.new_database().replace("+psycopg", "+asyncpg")
    with prefect_server(tmp_path_factory.mktemp("prefect"), database=database) as server:
        yield server


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    try:
        with ray_cluster(nodes=2, cpus_each=1, environment={"OMP_NUM_THREADS": "1"}) as cluster:
            yield cluster
    except MissingServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def place(tmp_path: Path) -> JobPlace:
    return JobPlace(tmp_path)


@pytest.fixture
def runner(place: JobPlace, prefect: PrefectServer, model_folder: Path) -> FlowRunner:
    untracked = {"PROMPTSTORE_MLFLOW_URI": ""}
    return FlowRunner(place.folder, {**place.environment(model_folder), **untracked, **prefect.environment})


def wait_for_a_fit(jobs: Path, nodes: list[RayNode]) -> tuple[Path, RayNode]:
    """A job that is in the midst of its fit, and the node that it is on."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for checkpoint in jobs.glob("*/checkpoint"):
            pid = int((checkpoint.parent / "lock").read_text() or 0)
            for node in nodes:
                if node.runs(pid):
                    return checkpoint.parent, node
        time.sleep(0.05)
    raise AssertionError("no fit ever began")


def test_a_node_that_dies_in_a_fit_costs_nothing_and_every_task_is_published_once(
    cluster: RayCluster, place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    files = [str(place.task_file(name)) for name in TASKS]
    started = runner.start("tune", tasks=files, job="spread", overrides=LONG, fan_out={"address": cluster.address})
    job, node = wait_for_a_fit(place.settings.state_dir / "jobs", list(cluster.nodes))
    killed = (job / "lock").read_text()
    node.kill()
    assert not list(job.glob("tasks/*/decision.json")), "the fit had ended before its node was killed"
    ended = started.wait()
    assert ended.code == 0, ended.error
    assert [each["version"] for each in ended.result["tasks"]] == [f"{name}:1" for name in TASKS]
    assert (job / "lock").read_text() != killed, "the killed fit was not done again by another process"
    store = place.store()
    numbers = {name: [each.number for each in task.versions] for name, task in store.state.tasks.items()}
    assert numbers == {name: [1] for name in TASKS}
    assert verify(LocalObjectStore(Path(place.settings.store))).is_clean
    runs = api.post("/task_runs/filter", json={}).raise_for_status().json()
    parts = [run for run in runs if run["name"].startswith("tune spread.")]
    assert [run["state_type"] for run in parts] == ["COMPLETED"] * len(TASKS)
