"""A Ray cluster of several nodes on one machine, each a group of processes of its own, as on machines of their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from promptstore.loopback import free_port
from promptstore.testing.servers.process import ServerProcess, program

OBJECT_STORE_BYTES = 80_000_000
STARTED = "Ray runtime started"


@dataclass(frozen=True, slots=True)
class RayNode:
    """One node: its agents, its raylet and the workers that this started."""

    process: ServerProcess

    def runs(self, pid: int) -> bool:
        """Whether the process is one of this node."""
        return pid in {each.pid for each in self._family()}

    def kill(self) -> None:
        """End all of it at once, by SIGKILL, as when its machine loses power."""
        family = self._family()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=10)

    def _family(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A cluster that takes work. nodes: those that have cores; the head, which has none, is not among them."""

    address: str
    nodes: Sequence[RayNode]


@contextmanager
def ray_cluster(*, nodes: int, cpus_each: int, environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """A running cluster, gone at the end with all it wrote. environment: added to that of its processes.

    Raises:
        MissingServerError: Ray is not installed.
        RuntimeError: a node ended or did not come up in time; holds the end of its log.
    """
    command = program("ray", "pip install 'promptstore[ray]'")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of its sockets have a bound
    surroundings = {
        **os.environ,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "RAY_memory_monitor_refresh_ms": "0",
        # A head asks for a token as soon as any local cluster of this user ever left one in ~/.ray.
        "RAY_AUTH_MODE": "disabled",
        **environment,
    }
    port = free_port()
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(name: str, *options: str, cpus: int) -> RayNode:
            common = ["--block", f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
            ports = [f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0"]
            arguments: list[str | Path] = [command, "start", *options, *common, *ports]
            node = _started(arguments, folder / f"{name}.log", surroundings)
            stack.callback(node.kill)
            return node

        head = [f"--port={port}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", "--no-monitor"]
        own = [f"--ray-client-server-port={free_port()}", f"--dashboard-port={free_port()}"]
        start("head", "--head", *head, *own, "--include-dashboard=false", cpus=0)
        yield RayCluster(address, [start(f"node-{at}", f"--address={address}", cpus=cpus_each) for at in range(nodes)])


def _started(arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> RayNode:
    """A node that is up. Ray gives up on one that takes over 30 s, as on a busy machine: then it is tried again."""
    for is_last in (False, False, True):
        node = RayNode(ServerProcess(arguments, log=log, environment=environment))
        try:
            node.process.wait_until(lambda: STARTED in log.read_text(errors="replace"))
            return node
        except RuntimeError:
            node.kill()
            if is_last:
                raise
    raise AssertionError
