"""Applies the deployments of a prefect.yaml: pools first, then everything in the file."""

import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from promptstore.errors import InvalidInputError, PromptStoreError


def deploy(file: Path, *, pool: str, pool_type: str, tasks: str) -> str:
    """Apply `file`; applying it again changes only what differs. What Prefect's own command said.

    pool: where the runs go; made, of `pool_type`, if it does not exist. tasks: folder with the task files, as workers
    see it.

    Raises:
        InvalidInputError: no such file, or Prefect does not accept what is in it, or the pool is of another type.
    """
    if not file.is_file():
        raise InvalidInputError(f"there is no {file}; name a prefect.yaml with --file")
    ensure_pool(pool, pool_type)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {**os.environ, "PROMPTSTORE_WORK_POOL": pool, "PROMPTSTORE_TASKS": tasks, "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PromptStoreError(f"prefect deploy failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def ensure_pool(name: str, kind: str) -> None:
    """Make the work pool, unless it exists.

    Raises:
        InvalidInputError: it exists and is of another type.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_work_pool(name)
        except ObjectNotFound:
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type=kind))
            except ObjectAlreadyExists:
                return ensure_pool(name, kind)  # somebody was faster
            return None
    if found.type != kind:
        raise InvalidInputError(
            f"work pool {name} is of type {found.type}, not {kind}; choose another name with --pool"
        )
    return None
