"""What a start costs with 100,000 versions in 10,000 tasks: fresh processes, one after the other."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from infra.bench.large_store import NEWEST, TAIL, TASKS, VERSIONS_PER_TASK, task_name
from infra.bench.measurement import Measurement, measured

STARTS = 5
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class _Start:
    """seconds: from opening the store to the first pulled prompt. process_s: the same, from the start of Python on."""

    seconds: float
    process_s: float
    peak_mib: float
    peak_mib_of_all: float


def cold_start(store: Path, command: str) -> list[Measurement]:
    """Medians of five starts on the large store at `store`.

    Tasks are decoded when they are first asked for, so the memory of a process that asked for all is a row, too.
    """
    starts = [_start(store) for _ in range(STARTS)]
    what = "cold start, 100,000 versions in 10,000 tasks"
    return [
        measured(f"{what}: open, pull", _median(starts, "seconds"), "s", target="< 3", command=command),
        measured(f"{what}: with Python and imports", _median(starts, "process_s"), "s", command=command),
        measured(f"{what}: peak memory", _median(starts, "peak_mib"), "MiB", target="< 500", command=command),
        measured(
            f"{what}: peak memory, every task read",
            _median(starts, "peak_mib_of_all"),
            "MiB",
            target="< 500",
            command=command,
        ),
    ]


def _start(store: Path) -> _Start:
    with tempfile.TemporaryDirectory(prefix="cold-start-") as scratch:
        ref = f"{task_name(TAIL // 2)}:{NEWEST}"
        arguments = [str(store), ref, scratch, repr(time.monotonic())]
        command = [sys.executable, "-m", "infra.bench.one_cold_start", *arguments]
        said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    first, last = json.loads(said[0]), json.loads(said[1])
    found, expected = (last["versions"], last["tasks"]), (TASKS * VERSIONS_PER_TASK + TAIL, TASKS)
    if found != expected:
        raise RuntimeError(f"the start found (versions, tasks) {found}, expected {expected}")
    return _Start(first["seconds"], first["process_s"], first["peak_mib"], last["peak_mib"])


def _median(starts: list[_Start], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in starts))
