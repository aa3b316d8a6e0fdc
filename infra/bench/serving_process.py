"""`promptstore serve` as its users run it: a process of its own that shares nothing with others but the store."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from promptstore.loopback import free_port
from promptstore.testing.servers.process import ServerProcess

DRAIN_S = 40.0
# With --compile and nothing kept a start takes one to two minutes.
READY_S = 600.0


@contextmanager
def server_process(store: Path, model: Path, *flags: str, threads: int = 1, dtype: str = "float32") -> Iterator[str]:
    """Serves the store in the folder `store` on the CPU; gives its URL.

    Settings of this process do not reach it: no keys, no traces, an empty cache.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "promptstore", "serve", "--store", str(store), "--model", str(model)]
    with tempfile.TemporaryDirectory(prefix="bench-server-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process = ServerProcess(
            [*command, "--port", str(port), *flags],
            log=folder / "log",
            environment=_environment(folder, threads, dtype),
        )
        try:
            process.wait_until(lambda: _is_ready(url), timeout_s=READY_S)
            yield url
        finally:
            process.stop(wait_s=DRAIN_S)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).is_success
    except httpx.HTTPError:
        return False


def _environment(folder: Path, threads: int, dtype: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PROMPTSTORE_", "OTEL_"))}
    return inherited | {
        "OMP_NUM_THREADS": str(threads),
        "PROMPTSTORE_STATE_DIR": str(folder / "state"),
        "PROMPTSTORE_CACHE_DIR": str(folder / "cache"),
        "PROMPTSTORE_DEVICE": "cpu",
        "PROMPTSTORE_DTYPE": dtype,
    }
