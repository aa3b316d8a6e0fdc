"""Tuning spread over a Ray cluster: one job for every few tasks, each on the cores and devices that it asks for."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from flows.environment import QUIET
from flows.parameters import FanOut, TuneParameters
from flows.retrying import is_passing
from promptstore.errors import ConflictError, InvalidInputError
from promptstore.settings import load_settings
from promptstore.tuning.job_names import find_task, git_commit, task_names
from promptstore.tuning.job_parts import JobPart, joined_result, lack_of_room, run_part, split_job
from promptstore.tuning.job_result import JobResult
from promptstore.wiring import open_prompt_store

LOCAL = "local"
# How many nodes may be lost under one part before it is given up.
LOST_NODES = 3


def tune_on_cluster(parameters: TuneParameters, job: str) -> JobResult:
    """Tune as `parameters.fan_out` says, in a flow run below this one."""
    fan_out = parameters.fan_out or FanOut()
    address = fan_out.address or load_settings().ray_address
    return tune_on_ray.with_options(task_runner=ray_runner(address))(parameters, fan_out, address, job)


def ray_runner(address: str) -> RayTaskRunner:
    """Runs tasks on the cluster at `address`; `local` is one that lives as long as the flow run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", QUIET["RAY_USAGE_STATS_ENABLED"])
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    # prefect-ray takes "auto" for "start one", so that it has to be said past it.
    if address == "auto":
        return RayTaskRunner(init_kwargs={**quiet, "address": address})
    return RayTaskRunner(address, init_kwargs=quiet)


@flow(name="tune-on-ray", flow_run_name="tune {parameters.tasks} on Ray")
def tune_on_ray(parameters: TuneParameters, fan_out: FanOut, address: str, job: str) -> JobResult:
    """Every part is a task run on some node. One that fails costs its own tasks only."""
    require_room(fan_out, address)
    settings = load_settings(model=parameters.model)
    store = open_prompt_store(settings)
    parts = split_job(
        job,
        [find_task(_from_anywhere(name), store) for name in task_names(parameters.tasks)],
        size=fan_out.tasks_per_fit,
        overrides=parameters.overrides,
        git_commit=git_commit(Path.cwd()),
        searches=parameters.search,
    )
    with remote_options(num_cpus=fan_out.cpus_per_fit, num_gpus=fan_out.gpus_per_fit, max_retries=LOST_NODES):
        waiting = [tune_part.submit(part, settings.shared()) for part in parts]
    return joined_result(job, parts, [outcome_of(each) for each in waiting])


def is_passing_on_a_cluster(given: Any, run: Any, state: State[Any]) -> bool:
    """As `is_passing`; and a node that was given up on may still be at the same part for a moment."""
    return isinstance(state.result(raise_on_failure=False), ConflictError) or is_passing(given, run, state)


@task(
    task_run_name="tune {part.job}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=is_passing_on_a_cluster,
    persist_result=False,
)
def tune_part(part: JobPart, shared: Mapping[str, Any]) -> JobResult:
    """What runs on a node. shared: the settings that all nodes have in common."""
    settings = load_settings(**shared)
    return run_part(part, settings=settings, store=open_prompt_store(settings))


def outcome_of(future: PrefectFuture[JobResult]) -> JobResult | BaseException:
    """The result, or why there is none; waits for it."""
    future.wait()
    outcome: JobResult | BaseException = future.state.result(raise_on_failure=False)
    return outcome


def require_room(fan_out: FanOut, address: str) -> None:
    """Say so if no node could run a fit: Ray itself waits for one without a word.

    Raises:
        InvalidInputError: none can, and none can join a local cluster. Others may still grow: there it is a warning.
    """
    wanted = {"CPU": fan_out.cpus_per_fit, "GPU": fan_out.gpus_per_fit}
    lack = lack_of_room(wanted, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if lack is None:
        return
    if address == LOCAL:
        raise InvalidInputError(f"{lack}; ask for less with cpus_per_fit and gpus_per_fit, or name another cluster")
    get_run_logger().warning("%s; waiting until one joins", lack)


def _from_anywhere(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name
