"""A hundred tasks over Ray on the local stack: does each arrive, does a database refuse?"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.bench.measurement import Measurement, measured
from infra.stack.rig import stack_rig
from promptstore.catalog.catalog import Catalog
from promptstore.catalog.search import Query
from promptstore.testing.job_place import JobPlace
from promptstore.testing.servers import RayCluster, ray_cluster

COMMAND = "python -m infra.bench speed --only fan_out"
TASKS = 100
AT_ONCE = 4
SETTINGS: Mapping[str, Any] = {
    "steps": 2,
    "warmup_steps": 0,
    "evaluate_every": 2,
    "batch_size": 8,
    "num_virtual_tokens": 4,
}
# What clients say when a database fails them, and what PostgreSQL itself says.
ERRORS = re.compile(
    r"sqlalchemy\.exc|asyncpg\.exceptions|psycopg\.errors|database is locked|QueuePool limit|\b(?:ERROR|FATAL|PANIC): "
)


@dataclass(frozen=True, slots=True)
class FlowRun:
    """A flow that ran in a process of its own."""

    code: int
    seconds: float
    said: str


def measurements() -> list[Measurement]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fan-")))
        rig = stack.enter_context(stack_rig())
        rig.up()
        # Every machine has its own credentials; these nodes have the stack's.
        environment = {**rig.variables, "OMP_NUM_THREADS": "1"}
        cluster = stack.enter_context(ray_cluster(nodes=1, cpus_each=AT_ONCE, environment=environment))
        logs = [rig.place.log(name) for name in ("postgres", "prefect", "mlflow")]
        before = {log: log.stat().st_size for log in logs}
        tuned = _run(_wanted(JobPlace(folder), cluster), folder, {**os.environ, **rig.variables})
        rig.shell("promptstore catalog sync")
        found = Catalog(rig.settings.database("catalog", "psycopg")).search(Query(limit=2 * TASKS))
        errors = list(_errors(before, tuned))
        print(*errors[:20], sep="\n", file=sys.stderr)
        findings = map(json.loads, rig.shell("promptstore verify --json || true").splitlines())
        problems = [each for each in findings if each["finding"] == "problem"]
    # The catalogue is a projection of the log: what it has once was published once.
    once = len({each.task for each in found}) if all(each.number == 1 for each in found) else 0
    return [
        measured("fan-out: of 100 tasks, published once", once, "tasks", target=f"== {TASKS}", command=COMMAND),
        measured("fan-out: exit code of the flow", tuned.code, "", target="== 0", command=COMMAND),
        measured("fan-out: problems in the store", len(problems), "", target="== 0", command=COMMAND),
        measured("fan-out: errors of a database", len(errors), "", target="== 0", command=COMMAND),
        measured("fan-out: 100 tasks take", tuned.seconds, "s", command=COMMAND),
    ]


def _wanted(place: JobPlace, cluster: RayCluster) -> Mapping[str, Any]:
    """A job of many tasks, several of them at a time however many cores there are."""
    files = [str(place.task_file(f"task-{number:03}", rows=24, seed=number)) for number in range(TASKS)]
    return {"tasks": files, "job": "fan", "overrides": dict(SETTINGS), "fan_out": {"address": cluster.address}}


def _run(parameters: Mapping[str, Any], folder: Path, variables: Mapping[str, str]) -> FlowRun:
    asked = folder / "parameters.json"
    asked.write_text(json.dumps(parameters))
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows", "tune", "--parameters", str(asked)]
    done = subprocess.run(command, env=variables, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr[-3000:], file=sys.stderr)
    return FlowRun(done.returncode, time.perf_counter() - began, done.stdout + done.stderr)


def _errors(before: Mapping[Path, int], run: FlowRun) -> Iterator[str]:
    """Lines about a database in what the flow said, and in what the servers wrote since they were up."""
    yield from (f"flow: {line}" for line in run.said.splitlines() if ERRORS.search(line))
    for log, size in before.items():
        text = log.read_bytes()[size:].decode(errors="replace")
        yield from (f"{log.name}: {line}" for line in text.splitlines() if ERRORS.search(line))
