"""Work pools: where runs are carried out, and what a run's job looks like there."""

import importlib.util
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool, WorkPoolStatus
from prefect.exceptions import ObjectNotFound
from prefect.utilities.templating import apply_values, find_placeholders

from promptstore.errors import InvalidInputError

# Each type's package, which its workers need; deploying needs none of them.
WORKERS = {"process": "prefect", "docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}
# What Prefect fills in for each run.
GIVEN = frozenset({"command", "env", "labels", "name"})
PARTS = ("job_configuration", "variables")


def read_template(file: Path) -> dict[str, Any]:
    """The base job template in `file`. `{{ $NAME }}` is a variable of the environment; the rest Prefect fills in later.

    Raises:
        InvalidInputError: no such file, or it uses a variable that it does not declare.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no {file}; name the pool's template with --pool-template") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict) or sorted(content) != sorted(PARTS):
        raise InvalidInputError(f"{file}: expected {' and '.join(PARTS)}, as Prefect's base job templates have")
    used = {each.name for each in find_placeholders(content["job_configuration"]) if not each.name.startswith("$")}
    declared = content["variables"].get("properties", {})
    if undeclared := sorted(used - GIVEN - set(declared)):
        raise InvalidInputError(f"{file}: {{{{ {undeclared[0]} }}}} is used but not declared among the variables")
    filled: dict[str, Any] = apply_values(content, {}, skip_prefixes=sorted(used))
    environment = filled["variables"].get("properties", {}).get("env", {}).get("default", {})
    for name in [name for name, value in environment.items() if not value]:
        del environment[name]  # a setting that `deploy` was not given has its default in the job as well
    return filled


def ensure_pool(name: str, kind: str, template: dict[str, Any] | None = None) -> None:
    """Make the work pool, or give it this template, if it has another.

    template: `None` leaves it as it is, which for a new pool is Prefect's own for the type.

    Raises:
        InvalidInputError: it exists and is of another type, or there is no such type.
    """
    _require_type(kind)
    with get_client(sync_client=True) as client:
        found = find_pool(client, name)
        if found is None:
            wanted = WorkPoolCreate(name=name, type=kind)
            if template is not None:
                wanted = WorkPoolCreate(name=name, type=kind, base_job_template=template)
            client.create_work_pool(wanted)
            return
        if found.type != kind:
            raise InvalidInputError(
                f"work pool {name} is of type {found.type}, not {kind}; choose another name with --pool"
            )
        if template is not None and found.base_job_template != template:
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def require_worker(kind: str) -> None:
    """Raises InvalidInputError: there is no such type of pool, or the package with its worker is not installed."""
    _require_type(kind)
    if importlib.util.find_spec(WORKERS[kind]) is None:
        package = WORKERS[kind].replace("_", "-")
        raise InvalidInputError(f"a worker of type {kind} needs the package {package}: pip install {package}")


def has_worker(name: str) -> bool:
    """Whether a worker of the pool gave a sign of life lately."""
    with get_client(sync_client=True) as client:
        pool = find_pool(client, name)
    return pool is not None and pool.status is not None and pool.status != WorkPoolStatus.NOT_READY


def _require_type(kind: str) -> None:
    if kind not in WORKERS:
        raise InvalidInputError(f"work pool type {kind!r} is unknown; it is one of {', '.join(WORKERS)}")


def find_pool(client: SyncPrefectClient, name: str) -> WorkPool | None:
    """The pool, if it exists."""
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None
