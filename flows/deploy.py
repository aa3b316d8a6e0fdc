"""Applies the deployments of a prefect.yaml: the pool first, then everything in the file.

Prefect's own `prefect deploy` reads the same file, but ends with an error after the first deployment where Prefect 3.8
meets FastAPI 0.154, the newest it runs with: its client asks for workers with `limit: null`, which the server refuses.
"""

from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import httpx
import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.templating import apply_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.pools import ensure_pool, read_template
from promptstore.errors import InvalidInputError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScheduleEntry(Strict):
    """`cron` or `interval` (seconds)."""

    cron: str | None = None
    interval: float | None = Field(default=None, gt=0)
    timezone: str = "UTC"
    active: bool = True

    def schedule(self) -> Schedule:
        if (self.cron is None) == (self.interval is None):
            raise InvalidInputError("a schedule has either cron or interval")
        if self.cron is not None:
            return Cron(self.cron, timezone=self.timezone, active=self.active)
        return Interval(timedelta(seconds=self.interval or 0), timezone=self.timezone, active=self.active)


class PoolEntry(Strict):
    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)


class DeploymentEntry(Strict):
    """One deployment, as Prefect's documentation describes it; what is not here, this file cannot say."""

    name: str
    entrypoint: str
    work_pool: PoolEntry
    description: str | None = None
    tags: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    schedules: list[ScheduleEntry] = Field(default_factory=list)
    triggers: list[dict[str, Any]] = Field(default_factory=list)
    concurrency_limit: ConcurrencyLimitConfig | None = None
    pull: list[Any] = Field(default_factory=list, max_length=0)

    def deployment(self) -> RunnerDeployment:
        deployment = _flow(self.entrypoint).to_deployment(
            name=self.name,
            description=self.description,
            tags=self.tags,
            parameters=self.parameters,
            schedules=[each.schedule() for each in self.schedules],
            triggers=cast("Any", self.triggers),
            concurrency_limit=self.concurrency_limit,
            work_pool_name=self.work_pool.name,
            work_queue_name=self.work_pool.work_queue_name,
            job_variables=self.work_pool.job_variables,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        return cast("RunnerDeployment", deployment)  # a coroutine only where it is called from one


class DeploymentFile(BaseModel):
    deployments: list[DeploymentEntry] = Field(min_length=1)


def deploy(file: Path, *, pool: str, pool_type: str, template: Path | None = None) -> list[str]:
    """Apply `file`; applying it again changes only what differs. The names of what is deployed, as `flow/deployment`.

    pool: made, of `pool_type`, if it does not exist. template: of the pool's jobs; `None` for Prefect's own.
    `{{ $NAME }}` in the files is a variable of the environment.

    Raises:
        InvalidInputError: no such file, something in it is wrong, the pool is of another type, or the server refuses a
            deployment; those before it in the file are applied then, and applying the mended file does the rest.
    """
    entries = read_file(file).deployments
    deployments = [_built(file, entry) for entry in entries]
    ensure_pool(pool, pool_type, None if template is None else read_template(template))
    for each in deployments:
        try:
            each.apply()
        except DeploymentApplyError as error:
            if not isinstance(error.__cause__, PrefectHTTPStatusError):
                raise
            name, why = f"{each.flow_name}/{each.name}", _refusal(error.__cause__.response)
            raise InvalidInputError(f"{file}: Prefect's server refuses {name}: {why}") from error
    return [f"{each.flow_name}/{each.name}" for each in deployments]


def read_file(file: Path) -> DeploymentFile:
    """The deployments in `file`. Raises InvalidInputError: it is not there or something in it is wrong."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        # What a trigger says about its event is filled in by Prefect's server, when it happens.
        return DeploymentFile.model_validate(apply_values(content, {}, skip_prefixes=["event"]))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no {file}; name a prefect.yaml with --file") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{file} is not YAML: {error}") from error
    except ValidationError as error:
        raise InvalidInputError(f"{file}: {_first(error)}") from error


def _built(file: Path, entry: DeploymentEntry) -> RunnerDeployment:
    try:
        return entry.deployment()
    except ValidationError as error:
        raise InvalidInputError(f"{file}: {entry.name}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first of what is wrong, and where."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _refusal(response: httpx.Response) -> str:
    """What a server says of a request that it does not take, in a line."""
    try:
        body = response.json()
    except ValueError:
        return f"it answered {response.status_code}"
    found = body.get("exception_detail") or body.get("detail") if isinstance(body, dict) else None
    if isinstance(found, list):
        places = [(each.get("loc", ()), each.get("msg", "")) for each in found if isinstance(each, dict)]
        found = "; ".join(f"{'.'.join(str(part) for part in place if part != 'body')}: {why}" for place, why in places)
    return f"it answered {response.status_code}: {found}" if found else f"it answered {response.status_code}"


def _flow(entrypoint: str) -> Flow[..., Any]:
    module, _, name = entrypoint.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(f"entrypoint {entrypoint}: there is no such flow ({error})") from error
    if not isinstance(found, Flow):
        raise InvalidInputError(f"entrypoint {entrypoint} is not a flow")
    return found
