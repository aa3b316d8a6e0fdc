"""Environments: what a command needs to work on the stack, and what the stack's servers see of the caller's own."""

import os
import shlex
import sys
from pathlib import Path

from flows.environment import client_environment
from infra.stack.place import StackPlace, StackSettings
from infra.stack.s3 import REGION, STORE_BUCKET, credentials

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",  # some look for 1, MLflow for true: it has a switch of its own as well
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
OF_OTHERS = ("AWS_", "MLFLOW_", "PREFECT_")


def client_variables(place: StackPlace, settings: StackSettings) -> dict[str, str]:
    """For every promptstore, mlflow, prefect and flow process that works on the stack."""
    return {
        **client_environment(place.data("prefect"), settings.ports["prefect"]),
        **TELEMETRY_OFF,
        **credentials(settings),
        "PROMPTSTORE_STORE": f"s3://{STORE_BUCKET}/store",
        "PROMPTSTORE_S3_ENDPOINT": settings.url("s3"),
        "PROMPTSTORE_S3_REGION": REGION,
        "PROMPTSTORE_STATE_DIR": str(place.data("state")),
        "PROMPTSTORE_CATALOG": settings.database("catalog", "psycopg"),
        "PROMPTSTORE_MLFLOW_URI": settings.url("mlflow"),
        "PROMPTSTORE_PREFECT_API_URL": f"{settings.url('prefect')}/api",
        "PROMPTSTORE_SERVER_URL": settings.url("server"),
        "PROMPTSTORE_CONFIRM_AT": settings.url("server"),
        "MLFLOW_TRACKING_URI": settings.url("mlflow"),
    }


def own_environment() -> dict[str, str]:
    """The caller's, without what it says about other MLflow, Prefect or S3 servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OF_OTHERS)}


def chosen_variables() -> dict[str, str]:
    """What the caller says about promptstore: its model, device, cache, keys."""
    return {name: value for name, value in os.environ.items() if name.startswith("PROMPTSTORE_")}


def shell_file(place: StackPlace, settings: StackSettings) -> str:
    """Lines for a shell to source. A model chosen when the stack was started stays chosen."""
    variables = client_variables(place, settings)
    if model := os.environ.get("PROMPTSTORE_MODEL"):
        variables["PROMPTSTORE_MODEL"] = model
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    return "\n".join(lines) + "\n"
