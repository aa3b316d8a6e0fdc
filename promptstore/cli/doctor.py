"""`promptstore doctor`: is everything here that the main job needs, and if not, what to do."""

import importlib.metadata
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from promptstore.errors import CorruptError, NotFoundError, PromptStoreError, StoreUnavailableError, UntrustedError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from promptstore.settings import Settings

PACKAGES = {
    "torch": "lm",
    "transformers": "lm",
    "datasets": "tuning",
    "mlflow": "tuning",
    "fastapi": "serving",
    "prefect": "flows",
}


STORE_FIXES: dict[type[PromptStoreError], str] = {
    NotFoundError: "make one: promptstore init, or set PROMPTSTORE_STORE to where it is",
    StoreUnavailableError: "bring its server back, or correct PROMPTSTORE_STORE and the settings of S3",
    CorruptError: "see what is damaged: promptstore verify",
    UntrustedError: "find out who wrote to it; PROMPTSTORE_TRUSTED_KEYS and PROMPTSTORE_STATE_DIR say what is expected",
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
    yield _looked("device", lambda: _device(settings), "PROMPTSTORE_DEVICE=cpu and PROMPTSTORE_DTYPE=auto always work")
    yield _looked("store", lambda: _store(settings), "correct the setting that is named", STORE_FIXES)
    yield _looked("model", lambda: _model(settings), "run: promptstore assets fetch, or set PROMPTSTORE_MODEL")
    yield _mlflow(settings.mlflow_uri)
    yield _server(
        "Prefect", settings.prefect_api_url, "/health", "PREFECT_API_URL", "flows start a server of their own"
    )


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "use >= 3.11")


def _package(package: str, extra: str) -> Finding:
    install = f"pip install 'promptstore[{extra}]'"
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, False, "not installed", install)
    try:
        wanted = _requirement(package, extra)
    except ImportError as error:  # of packaging, which every extra brings along
        return Finding(package, False, f"{version}, which cannot be judged: {error}", install)
    if wanted.specifier.contains(version, prereleases=True):
        return Finding(package, True, version)
    return Finding(package, False, f"{version}, promptstore needs {wanted.specifier}", f"pip install '{wanted}'")


def _requirement(package: str, extra: str) -> "Requirement":
    """All that promptstore with `extra` asks of `package` on this machine, in one."""
    from packaging.requirements import Requirement

    wanted = Requirement(package)
    for line in importlib.metadata.requires("promptstore") or ():
        each = Requirement(line)
        if each.name == package and (each.marker is None or each.marker.evaluate({"extra": extra})):
            wanted.specifier &= each.specifier
    return wanted


def _looked(
    what: str, look: Callable[[], str], fix: str, fixes: dict[type[PromptStoreError], str] | None = None
) -> Finding:
    """fixes: by kind of error, where one kind needs something else than `fix`."""
    try:
        return Finding(what, True, look())
    except PromptStoreError as error:
        return Finding(what, False, str(error), (fixes or {}).get(type(error), fix))
    except ImportError as error:
        return Finding(what, False, f"cannot look: {error}", "install the packages above first")


def _device(settings: "Settings") -> str:
    import torch

    from promptstore.lm.placement import choose_placement

    placement = choose_placement(settings.device, settings.dtype)
    computed = str(placement.dtype).removeprefix("torch.")
    if placement.device.type != "cuda":
        return f"{placement.device}, {torch.get_num_threads()} threads, {computed}"
    return f"{torch.cuda.get_device_name(placement.device)}, {torch.cuda.device_count()} device(s), {computed}"


def _store(settings: "Settings") -> str:
    from promptstore.wiring import open_prompt_store

    state = open_prompt_store(settings, create=False).state
    return f"{settings.store_url}: {len(state.tasks)} tasks, commit {state.number}"


def _model(settings: "Settings") -> str:
    from promptstore.lm.source import describe_source

    return describe_source(settings.model, cache_dir=settings.cache_dir)


def _mlflow(uri: str) -> Finding:
    """A server that answers, or a database file that opens."""
    from promptstore.tracking.mlflow_address import without_password

    if uri.startswith("sqlite:"):
        return _sqlite(uri, Path(unquote(urlsplit(uri).path)[1:]).absolute())
    return _server("MLflow", without_password(uri), "/health", "PROMPTSTORE_MLFLOW_URI", "runs are not tracked", uri)


def _sqlite(uri: str, path: Path) -> Finding:
    """A database that is not there yet is not made: MLflow makes it, but not its folder."""
    if not path.parent.is_dir():
        return Finding("MLflow", False, f"{uri}: there is no folder {path.parent}", f"make it: mkdir -p {path.parent}")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            fix = "give this user permission, or correct PROMPTSTORE_MLFLOW_URI"
            return Finding("MLflow", False, f"{uri}: {place} cannot be written", fix)
    try:
        if path.exists():
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
                database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        return Finding("MLflow", False, f"{uri}: {error}", f"move {path} away, or correct PROMPTSTORE_MLFLOW_URI")
    return Finding("MLflow", True, f"{uri} (no server)")


def _server(what: str, url: str, path: str, variable: str, otherwise: str, asked: str = "") -> Finding:
    """url: as it may be shown. asked: the address itself, if that has a password."""
    import httpx

    if not url:
        return Finding(what, True, f"{variable} is not set: {otherwise}")
    if not url.startswith("http"):
        return Finding(what, True, f"{url} (no server)")
    try:
        answer = httpx.get((asked or url).rstrip("/") + path, timeout=5)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(what, False, f"{url}: {_reason(error)}", f"start it, or correct {variable}")
    return Finding(what, True, url)


def _reason(error: Exception) -> str:
    """Without the address, which may hold a password."""
    import httpx

    return f"it answered {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
