"""The servers of the stack, in the order in which they need each other."""

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import httpx

from flows.environment import OUTBOX, server_environment
from infra.stack.environment import TELEMETRY_OFF, chosen_variables, client_variables, own_environment
from infra.stack.place import StackPlace, StackSettings
from infra.stack.postgres import postgres_service
from infra.stack.s3 import ARTIFACT_BUCKET, credentials, s3_service
from infra.stack.service import Service, answers
from promptstore.errors import PromptStoreError
from promptstore.loopback import loopback_client
from promptstore.outbox.delivery import OutboxPlace

WORK_POOL = "promptstore"
SILENT_FOR_S = 90.0


def stages(place: StackPlace, settings: StackSettings) -> tuple[tuple[Service, ...], ...]:
    """The services; those of a stage start together, once all of the stage before answer.

    Raises:
        MissingServerError: the program of one is not installed.
    """
    return (
        (postgres_service(place, settings), s3_service(place, settings)),
        (mlflow_service(place, settings), prefect_service(place, settings), replica_service(place, settings)),
        (worker_service(place, settings), announcer_service(place, settings)),
    )


def mlflow_service(place: StackPlace, settings: StackSettings) -> Service:
    """Runs and models in PostgreSQL, artifacts in S3 through the server: its clients need no keys."""
    url, port = settings.url("mlflow"), settings.ports["mlflow"]
    asked = {
        **TELEMETRY_OFF,
        **credentials(settings),
        "MLFLOW_BACKEND_STORE_URI": settings.database("mlflow", "psycopg"),
        "MLFLOW_S3_ENDPOINT_URL": settings.url("s3"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its judges of language models: three idle processes
    }
    options = ("--artifacts-destination", f"s3://{ARTIFACT_BUCKET}", "--workers", "1")
    return Service(
        name="mlflow",
        place=place,
        address=url,
        ports={"mlflow": port},
        command=_python("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *options),
        environment={**own_environment(), **asked},
        asked=asked,
        is_ready=lambda: answers(f"{url}/health"),
    )


def prefect_service(place: StackPlace, settings: StackSettings) -> Service:
    url, port, home = settings.url("prefect"), settings.ports["prefect"], place.data("prefect")
    database = settings.database("prefect", "asyncpg")
    asked = {**TELEMETRY_OFF, **server_environment(home, port, database=database)}
    return Service(
        name="prefect",
        place=place,
        address=url,
        ports={"prefect": port},
        command=_python("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)),
        environment={**own_environment(), **asked},
        asked=asked,
        prepare=lambda: home.mkdir(exist_ok=True),
        is_ready=lambda: answers(f"{url}/api/health"),
    )


def replica_service(place: StackPlace, settings: StackSettings) -> Service:
    """One `promptstore serve`, over a store that is made if there is none."""
    url, port = settings.url("server"), settings.ports["server"]
    asked = {**chosen_variables(), **client_variables(place, settings)}
    environment = {**own_environment(), **asked}
    return Service(
        name="server",
        place=place,
        address=url,
        ports={"server": port},
        command=_python("promptstore", "serve", "--port", str(port)),
        environment=environment,
        asked=asked,
        prepare=lambda: _make_store(environment),
        is_ready=lambda: answers(f"{url}/readyz"),
        stops_within_s=40.0,  # it answers what it has, for up to 30 s
    )


def worker_service(place: StackPlace, settings: StackSettings) -> Service:
    """Runs what is scheduled for the work pool, which it makes; `python -m flows deploy` schedules."""
    asked = {**chosen_variables(), **client_variables(place, settings)}
    return Service(
        name="worker",
        place=place,
        address=f"work pool {WORK_POOL}",
        ports={},
        command=_python("flows", "worker", "--pool", WORK_POOL),
        environment={**own_environment(), **asked},
        asked=asked,
        is_ready=lambda: _has_reported(f"{settings.url('prefect')}/api", place.pid_file("worker")),
    )


def announcer_service(place: StackPlace, settings: StackSettings) -> Service:
    """Tells Prefect what changes in the store, for its triggers and automations."""
    asked = {**chosen_variables(), **client_variables(place, settings)}
    outbox = OutboxPlace(place.data("state") / "outbox", OUTBOX)
    return Service(
        name="announcer",
        place=place,
        address=f"events promptstore.* on {settings.url('prefect')}/events",
        ports={},
        command=_python("flows", "announce"),
        environment={**own_environment(), **asked},
        asked=asked,
        is_ready=lambda: outbox.sender() is not None,
    )


def _has_reported(api: str, pid_file: Path) -> bool:
    """Whether a worker of the pool gave a sign of life after this one was started; they do every 30 s."""
    try:
        with loopback_client(3.0) as client:
            found = client.post(f"{api}/work_pools/{WORK_POOL}/workers/filter", json={})
        if found.status_code != 200:
            return False
        signs = [datetime.fromisoformat(each["last_heartbeat_time"]).timestamp() for each in found.json()]
        return max(signs, default=0.0) > max(pid_file.stat().st_mtime, time.time() - SILENT_FOR_S)
    except (httpx.HTTPError, OSError):
        return False


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _make_store(environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        _python("promptstore", "init"), check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    if done.returncode != 0:
        raise PromptStoreError(f"promptstore init failed: {done.stderr.strip()}")
