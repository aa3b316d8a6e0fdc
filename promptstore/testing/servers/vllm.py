"""vLLM on plain CPU, from an environment of its own that `infra/servers/install-vllm.sh` makes."""

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptstore.loopback import free_port
from promptstore.testing.servers.process import MissingServerError, ServerProcess

ENVIRONMENT = Path(__file__).parents[3] / ".venv-vllm"
START_TIMEOUT_S = 900.0
CACHE_GIB = 1
# Positions of a block of its prefix cache, which keeps whole blocks: the smallest that its CPU kernels take.
SMALLEST_BLOCK = 32


@contextmanager
def vllm_server(
    model: Path, *, dtype: str, threads: int = 2, is_compiled: bool = False, block: int | None = SMALLEST_BLOCK
) -> Iterator[str]:
    """A vLLM for one model folder, with a prefix cache, that takes prompt embeddings; gives its URL.

    is_compiled: as vLLM runs by default, which is faster and takes a minute more to start. block: `None` for its own
    choice, which is 128 on a CPU, so that its cache keeps no prompt of 100 virtual tokens by itself.

    Raises:
        MissingServerError: the environment was not made on this machine.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / ".installed").exists():
        raise MissingServerError(f"vLLM is not in {ENVIRONMENT}; run infra/servers/install-vllm.sh")
    port = free_port()
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "2048"),
        *("--enable-prompt-embeds", "--enable-prefix-caching", "--max-num-seqs", "32"),
        *(() if block is None else ("--block-size", str(block))),
        *(() if is_compiled else ("--enforce-eager",)),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True) as folder:
        process = ServerProcess(command, log=Path(folder) / "log", environment=environment)
        try:
            process.wait_until(lambda: bool(_models(port)), timeout_s=START_TIMEOUT_S)
            yield f"http://127.0.0.1:{port}"
        finally:
            # On SIGTERM it ends its workers itself; killed, it would leave them.
            process.stop(wait_s=60)


def _models(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
        return [card["id"] for card in json.load(answer)["data"]]
