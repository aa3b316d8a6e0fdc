"""What Prefect, MLflow and publishing add to a fit, and what tracking takes from its steps.

Wall clock says what a person waits for, on a machine with nothing else to do; processor time hardly depends on
what else it does.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from infra.bench.measurement import Measurement, measured
from infra.stack.rig import stack_rig
from promptstore.lm.source import open_model
from promptstore.settings import load_settings
from promptstore.testing.job_place import JobPlace
from promptstore.tracking.delivery import Delivery
from promptstore.tracking.events import Event, MetricsLogged
from promptstore.tracking.mlflow_address import default_artifact_root
from promptstore.tracking.mlflow_sink import MlflowSink
from promptstore.tracking.port import RunHeader, RunLog, Tracker, TrackingReport
from promptstore.tracking.spool import Spool
from promptstore.tracking.tracker import DeliveredTracker
from promptstore.tuning.fit import DEFAULT_OPTIONS
from promptstore.tuning.job import JobTools, tune_tasks
from promptstore.tuning.job_progress import SilentProgress
from promptstore.tuning.task_file import read_task

COMMAND = "python -m infra.bench speed --only orchestration"
TURNS = 3
TEN_MINUTES_S = 600.0
STEPS = 30
SETTINGS: Mapping[str, Any] = {"steps": STEPS, "evaluate_every": STEPS // 2}
DEMO_MODEL = "asset:smollm2-135m"

# The same job as the flow does, with nothing around it: no server, no runs, no versions.
BARE = """
import json, sys
from pathlib import Path
from promptstore.settings import load_settings
from promptstore.lm.source import open_model
from promptstore.tuning.evaluate import EvaluationCase, evaluate, evaluate_all
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit import fit
from promptstore.tuning.job_plan import plan_task
from promptstore.tuning.task_file import read_task

settings = load_settings()
plan = plan_task(read_task(Path(sys.argv[1])), json.loads(sys.argv[2]), settings=settings)
model = open_model(settings.model, cache_dir=settings.cache_dir, device="cpu", dtype="float32")
evaluate_all(model, [EvaluationCase(plan.task, None, plan.held_out)])
for event in fit(model, [plan.fit_job()]):
    if isinstance(event, FitFinished):
        evaluate(model, plan.task, event.result.prompt, plan.held_out)
"""


def measurements() -> list[Measurement]:
    with tempfile.TemporaryDirectory(prefix="bench-flows-") as name:
        return [*_around(Path(name)), *_within(Path(name))]


def _around(folder: Path) -> list[Measurement]:
    """Whole processes, by turns, beside the local stack: Prefect and MLflow on PostgreSQL, the store on S3."""
    with stack_rig() as rig:
        rig.up()
        # A judgement beside the fit, which the bare one does not make either.
        environment = {**os.environ, **rig.variables, "PROMPTSTORE_TEXT_PROMPT_BASELINE": "false"}
        return _added(folder, JobPlace(folder / "place").task_file("sst2"), environment)


def _added(folder: Path, file: Path, environment: Mapping[str, str]) -> list[Measurement]:
    _flow(folder, file, environment, turn=-1)  # makes the experiment
    bare, flows = [], []
    for turn in range(TURNS):
        bare.append(_cost([sys.executable, "-c", BARE, str(file), json.dumps(SETTINGS)], environment))
        flows.append(_flow(folder, file, environment, turn=turn))
    added = median(each.wall_s for each in flows) - median(each.wall_s for each in bare)
    added_processor = median(each.processor_s for each in flows) - median(each.processor_s for each in bare)
    share = 100 * added / TEN_MINUTES_S
    return [
        measured("tune flow: a bare fit's process", median(each.wall_s for each in bare), "s", command=COMMAND),
        measured("tune flow: what Prefect, MLflow and publish add", added, "s", target="< 10", command=COMMAND),
        measured("tune flow: share of a ten-minute fit", share, "%", target="< 2", command=COMMAND),
        measured("tune flow: processor time that they add", added_processor, "s", command=COMMAND),
    ]


def _flow(folder: Path, file: Path, environment: Mapping[str, str], *, turn: int) -> "Cost":
    parameters = folder / f"{turn}.json"
    parameters.write_text(json.dumps({"tasks": [str(file)], "job": f"turn{turn}", "overrides": dict(SETTINGS)}))
    return _cost([sys.executable, "-m", "flows", "tune", "--parameters", str(parameters)], environment)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took. processor_s: its own and that of its children."""

    wall_s: float
    processor_s: float


def _cost(command: list[str], environment: Mapping[str, str]) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - began, processor_s)


def _within(folder: Path) -> list[Measurement]:
    """Processor time of tracking, in its own thread and in the fit's, against that of a step, on the demo's model."""
    torch.set_num_threads(1)
    place = JobPlace(folder / "within")
    task = read_task(place.task_file("sst2"))
    settings = place.settings.model_copy(update={"model": DEMO_MODEL, "cache_dir": load_settings().cache_dir})
    model = open_model(DEMO_MODEL, cache_dir=settings.cache_dir, device="cpu")
    sink = TimedSink(MlflowSink(place.mlflow_uri, artifact_root=default_artifact_root(place.mlflow_uri)))
    tracker = TimedTracker(DeliveredTracker(Delivery(sink, Spool(folder / "spool.jsonl"))))
    steps = StepTimes()
    tools = JobTools(place.store(), model, tracker, settings.state_dir / "jobs", settings, progress=steps)
    tune_tasks([task], job="within", tools=tools, overrides={**SETTINGS, "evaluate_every": STEPS})
    step_s = steps.mean_s
    share = 100 * (sink.measurements_s + tracker.put_s) / STEPS / step_s
    whole = 100 * sink.all_s / STEPS / step_s
    return [
        measured("tracking: a step, processor time", step_s, "s", command=COMMAND),
        measured("tracking: measurements, share of a step", share, "%", target="< 2", command=COMMAND),
        measured(f"tracking: everything told, share of {STEPS} steps", whole, "%", command=COMMAND),
    ]


class StepTimes(SilentProgress):
    """Processor time of the steps, in the thread of the fit, which reports several of them at once."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def step(self, task: str, *, step: int, last_step: int, loss: float) -> None:  # noqa: ARG002
        self._times.append(time.thread_time())

    @property
    def mean_s(self) -> float:
        """Of one step; those of the first report are left out, for nobody said when they began."""
        return (self._times[-1] - self._times[0]) / (len(self._times) - DEFAULT_OPTIONS.report_every)


class TimedSink:
    """The processor time that telling takes in the tracking thread, MLflow's work on its SQLite included."""

    def __init__(self, sink: MlflowSink) -> None:
        self._sink = sink
        self.all_s = 0.0
        self.measurements_s = 0.0

    def run_id(self, key: str) -> str | None:
        return self._sink.run_id(key)

    def send(self, event: Event) -> None:
        began = time.thread_time()
        try:
            self._sink.send(event)
        finally:
            took = time.thread_time() - began
            self.all_s += took
            self.measurements_s += took if isinstance(event, MetricsLogged) else 0.0


class TimedTracker:
    """The processor time that putting measurements takes in the thread of the fit."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.put_s = 0.0

    def start(self, header: RunHeader) -> RunLog:
        return TimedRun(self._tracker.start(header), self)

    def close(self) -> TrackingReport:
        return self._tracker.close()


class TimedRun:
    def __init__(self, run: RunLog, times: TimedTracker) -> None:
        self._run = run
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None:
        began = time.thread_time()
        self._run.log_metrics(values, step=step)
        self._times.put_s += time.thread_time() - began
