"""`promptstore doctor`: is everything here that the main job needs, and if not, what to do."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from promptstore.errors import PromptStoreError

if TYPE_CHECKING:
    from promptstore.settings import Settings

PACKAGES = {
    "torch": "lm",
    "transformers": "lm",
    "datasets": "tuning",
    "mlflow": "tuning",
    "fastapi": "serving",
    "prefect": "flows",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. fix: what to do, empty where nothing is wrong."""

    what: str
    is_well: bool
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"what": self.what, "ok": self.is_well, "found": self.found, "fix": self.fix}


def examine(settings: "Settings") -> Iterator[Finding]:
    """Every finding, in the order in which a person would mend them."""
    yield _python()
    for package, extra in PACKAGES.items():
        yield _package(package, extra)
    yield _looked("device", lambda: _device(settings), "PROMPTSTORE_DEVICE=cpu works everywhere")
    yield _looked(
        "store", lambda: _store(settings), "set PROMPTSTORE_STORE to where it is, or make one: promptstore init"
    )
    yield _looked("model", lambda: _model(settings), "run: promptstore assets fetch, or set PROMPTSTORE_MODEL")
    yield _server("MLflow", settings.mlflow_uri, "/health", "PROMPTSTORE_MLFLOW_URI", "runs are not tracked")
    yield _server(
        "Prefect", settings.prefect_api_url, "/health", "PREFECT_API_URL", "flows start a server of their own"
    )


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use >= 3.11")


def _package(package: str, extra: str) -> Finding:
    try:
        return Finding(package, True, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, False, "not installed", f"pip install 'promptstore[{extra}]'")


def _looked(what: str, look: Callable[[], str], fix: str) -> Finding:
    try:
        return Finding(what, True, look())
    except PromptStoreError as error:
        return Finding(what, False, str(error), fix)
    except ImportError as error:
        return Finding(what, False, f"cannot look: {error}", "install the packages above first")


def _device(settings: "Settings") -> str:
    import torch

    threads = torch.get_num_threads()
    if settings.device == "cpu" or not torch.cuda.is_available():
        return f"cpu, {threads} threads"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} device(s)"


def _store(settings: "Settings") -> str:
    from promptstore.wiring import open_prompt_store

    state = open_prompt_store(settings, create=False).state
    return f"{settings.store_url}: {len(state.tasks)} tasks, commit {state.number}"


def _model(settings: "Settings") -> str:
    from promptstore.lm.source import describe_source

    return describe_source(settings.model, cache_dir=settings.cache_dir)


def _server(what: str, url: str, path: str, variable: str, otherwise: str) -> Finding:
    import httpx

    if not url:
        return Finding(what, True, f"{variable} is not set: {otherwise}")
    if not url.startswith("http"):
        return Finding(what, True, f"{url} (no server)")
    try:
        answer = httpx.get(url.rstrip("/") + path, timeout=5)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return Finding(what, False, f"{url}: {error}", f"start it, or correct {variable}")
    return Finding(what, True, url)
