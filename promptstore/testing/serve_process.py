"""`promptstore serve` as its users run it: a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import loopback_client

READY_S = 90.0


@dataclass(frozen=True, slots=True)
class ServeProcess:
    """A server that was started. url: of its root. client: asks it, and waits no longer than it was made to."""

    url: str
    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    def ready(self) -> httpx.Response:
        return self.client.get("/readyz")

    def gauge(self, name: str) -> float:
        """The value that /metrics gives for a gauge without labels."""
        lines = self.client.get("/metrics").raise_for_status().text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait_until_ready(self) -> None:
        """Blocks until new requests are welcome.

        Raises:
            RuntimeError: it ended, or is not ready after a minute and a half; holds what it logged.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ready().status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise RuntimeError(f"the server did not get ready:\n{self.log.read_text(errors='replace')}")

    def end(self, *, within_s: float) -> int:
        """The exit code after SIGTERM. Raises subprocess.TimeoutExpired: it did not end in time."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=within_s)


@contextmanager
def serve_process(
    folder: Path,
    store_url: str,
    *arguments: str,
    port: int,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 20.0,
) -> Iterator[ServeProcess]:
    """Starts a server of the model in `folder`/model, killed when the block ends.

    arguments: of `promptstore serve`. environment: beside ours. patience_s: of the client.
    """
    own = {
        "OMP_NUM_THREADS": "1",
        "PROMPTSTORE_STATE_DIR": str(folder / "state"),
        "PROMPTSTORE_CACHE_DIR": str(folder / "cache"),
        "PROMPTSTORE_DEVICE": "cpu",
        "PROMPTSTORE_DTYPE": "float32",
    }
    asked = ("serve", "--store", store_url, "--model", str(folder / "model"), "--port", str(port), *arguments)
    log = folder / f"serve-{port}.log"
    with log.open("wb") as output, loopback_client(patience_s) as client:
        client.base_url = httpx.URL(f"http://127.0.0.1:{port}")
        with subprocess.Popen(
            [sys.executable, "-m", "promptstore", *asked],
            env={**os.environ, **own, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                yield ServeProcess(str(client.base_url), client, process, log)
            finally:
                process.kill()


def save_model(model: FrozenModel, folder: Path) -> FrozenModel:
    """Leaves `model` in `folder`/model for processes to open; as they open it."""
    from promptstore.lm.source import open_model

    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    return open_model(str(folder / "model"), cache_dir=folder / "cache", device="cpu", dtype="float32")
