"""The main job, once, on real weights and real text: tune, publish, gate, promote, serve, switch, roll back."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptstore.cli.demo.flows import FlowRunner
from promptstore.cli.demo.place import DemoPlace
from promptstore.cli.demo.processes import ChildProcess
from promptstore.cli.demo.report import DemoReport, TaskResult
from promptstore.cli.demo.traffic import Traffic
from promptstore.cli.output import note
from promptstore.client import Classification, Client
from promptstore.errors import NotFoundError, PromptStoreError
from promptstore.lm.assets import fetch_assets
from promptstore.loopback import free_port
from promptstore.settings import load_settings
from promptstore.tuning.demo_data import write_demo_data
from promptstore.wiring import open_prompt_store

SWITCH_S = 60.0
SWITCHED_TASK = "sentiment"
TEXTS = (
    "I waited an hour and the soup was cold.",
    "Best phone I have ever owned, the battery lasts for days.",
    "The senator's proposal deserves a hearing, whatever one thinks of its author.",
    "omg can't believe it's friday already :)",
)
# What the second version changes: it goes on from the first one, gently.
SECOND_VERSION = {"learning_rate": 0.001, "loss": "labels", "warmup_steps": 0, "evaluate_every": 10, "seed": 1}
# Few rows, because a CPU without bfloat16 fits seven a second, and a loss that begins faster than the default one. From
# the vocabulary at a rate of 0.1 one run in two lost what the bare model knows (sentiment: 0.63 in bfloat16).
FIRST_VERSION = {"loss": "labels", "warmup_steps": 4, "evaluate_every": 20}
STEPS, SECOND_STEPS = {"steps": 40, "batch_size": 16}, {"steps": 10, "batch_size": 16}
# These look once, at their end: there is no step to choose, so few rows will do. The held-out ones are others.
QUICK = {"batch_size": 8, "max_validation_rows": 16}
QUICK_STEPS, QUICK_SECOND_STEPS = {"steps": 24, "learning_rate": 0.02, **QUICK}, {"steps": 4, **QUICK}


def run_demo(folder: Path, *, quick: bool, model: str | None) -> DemoReport:
    """Runs the whole loop in `folder`, which keeps everything. Repeating it there adds versions to the same store.

    Raises:
        PromptStoreError: any step failed; what was published and promoted until then stays valid.
    """
    started = time.monotonic()
    place = DemoPlace.make(folder, quick=quick, model=model)
    place.write_environment(model)
    prefect_port = free_port()
    environment = place.environment(f"http://127.0.0.1:{prefect_port}/api", model)
    settings = load_settings(store=str(place.store), state_dir=place.state, actor="demo")
    with _prefect(place, environment, prefect_port) as prefect:
        fetch_assets(settings.cache_dir)
        task_files = write_demo_data(settings.cache_dir, place.data, quick=quick)
        health = f"http://127.0.0.1:{prefect_port}/api/health"
        flows = FlowRunner(environment, place.logs, lambda: prefect.wait_until_ready(health))
        steps = QUICK_STEPS if quick else STEPS
        note(f"1/5 tune {len(task_files)} tasks together on one frozen model, {steps['steps']} steps each")
        tuned = _tune(flows, "tune", task_files, {**FIRST_VERSION, **steps})
        url = f"http://127.0.0.1:{free_port()}"
        with _server(place, environment, url) as server:  # opens the model meanwhile
            note("2/5 gate and promote both tasks at once")
            firsts = {task["version"]: file for task, file in zip(tuned, task_files, strict=True)}
            _promote(flows, firsts, "first version of the demo")
            server.wait_until_ready(f"{url}/readyz")
            note(f"3/5 serve at {url}: both tasks in one batch")
            with Client(url) as client:
                for task in tuned:
                    _wait_until_served(client, task["task"])
                _print_answers(client.classify([task["task"] for task in tuned], TEXTS))
            note(f"4/5 tune, gate and promote a second version of {SWITCHED_TASK} while requests are in flight")
            file = next(path for path in task_files if path.stem == SWITCHED_TASK)
            before = next(task["version"] for task in tuned if task["task"] == SWITCHED_TASK)
            with Traffic(url, SWITCHED_TASK, TEXTS) as traffic:
                traffic.require(before, timeout_s=SWITCH_S)
                second_steps = QUICK_SECOND_STEPS if quick else SECOND_STEPS
                overrides = {**SECOND_VERSION, **second_steps, "initialise": f"version:{before}"}
                (second,) = _tune(flows, "tune-second", [file], overrides)
                _promote(flows, {second["version"]: file}, "goes on from the first version")
                traffic.require(second["version"], timeout_s=SWITCH_S)
                note(f"5/5 roll {SWITCHED_TASK} back to {before}")
                store = open_prompt_store(settings)
                store.rollback(SWITCHED_TASK, reason="the demo shows the way back")
                traffic.require(before, timeout_s=SWITCH_S)
    return DemoReport(
        tasks=tuple(_result(task) for task in tuned),
        requests=len(traffic.answers),
        failed_requests=traffic.failed,
        switched_in_flight=traffic.has_switched(before, second["version"]),
        rolled_back=str(store.resolve(SWITCHED_TASK)) == before,
        seconds=time.monotonic() - started,
    )


def _prefect(place: DemoPlace, environment: dict[str, str], port: int) -> ChildProcess:
    """A Prefect server of the demo's own; it starts while the data is prepared."""
    arguments = ("-m", "flows", "server", "--home", str(place.prefect), "--port", str(port))
    log = place.logs / "prefect.log"
    return ChildProcess("the Prefect server", arguments, environment=environment, log_path=log)


def _server(place: DemoPlace, environment: dict[str, str], url: str) -> ChildProcess:
    port = url.rpartition(":")[2]
    arguments = ("-m", "promptstore", "serve", "--port", port, "--poll", "0.5")
    # One sentence at a time, beside a fit that wants both cores: a second thread would mostly wait.
    alone = {**environment, "OMP_NUM_THREADS": "1"}
    return ChildProcess("the server", arguments, environment=alone, log_path=place.logs / "server.log")


def _tune(flows: FlowRunner, label: str, files: Sequence[Path], overrides: dict[str, Any]) -> list[dict[str, Any]]:
    parameters = {"tasks": [str(file) for file in files], "overrides": overrides}
    tasks: list[dict[str, Any]] = flows.run("tune", label, parameters)["tasks"]
    if failures := [f"{task['task']}: {task['failure']}" for task in tasks if task["failure"]]:
        raise PromptStoreError("; ".join(failures))
    return tasks


def _promote(flows: FlowRunner, files: Mapping[str, Path], reason: str) -> None:
    """files: by version, the task's."""
    runs = {
        f"promote-{version.replace(':', '-')}": {"ref": version, "task_file": str(file), "reason": reason}
        for version, file in files.items()
    }
    flows.run_all("promote", runs)


def _wait_until_served(client: Client, task: str) -> None:
    """The server looks at the store now and then, and may have looked last just before the promotion."""
    deadline = time.monotonic() + SWITCH_S
    while True:
        try:
            client.model(task)
            return
        except NotFoundError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def _print_answers(answers: Sequence[Classification]) -> None:
    for answer in answers:
        version = f"{answer.task}:{answer.version}"
        note(f"    {version:12} {answer.label:10} {answer.probabilities[answer.label]:.2f}  {TEXTS[answer.index]}")


def _result(task: dict[str, Any]) -> TaskResult:
    return TaskResult(
        task=task["task"],
        untuned_accuracy=task["untuned"],
        tuned_accuracy=task["tuned"],
        version=task["version"],
        digest=task["digest"],
        parameters=task["parameters"],
        payload_bytes=task["payload_bytes"],
        seconds=task["seconds"],
    )
