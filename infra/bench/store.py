"""The store by itself: round trips, resolve, poll, and a cold start with 100,000 versions."""

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infra.bench.measurement import Measurement, measured
from promptstore.core.commit import CHECKPOINT_EVERY, Commit, names_checkpoint
from promptstore.core.digest import sha256_hex
from promptstore.core.fold import fold
from promptstore.core.operation import Attest, MoveAlias, Operation, Publish
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.checkpoints import encode_checkpoint, encode_hint
from promptstore.store.layout import HINT_KEY, checkpoint_key, commit_key
from promptstore.store.ledger import Ledger
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

COMMAND = "python -m infra.bench speed --only store"
TASKS, VERSIONS, PER_COMMIT, TAIL = 10_000, 10, 10, 60


def measurements() -> list[Measurement]:
    """One row per promise of the store."""
    return [*_calls(), *_cold_start()]


def _calls() -> list[Measurement]:
    objects = ScriptedObjects(MemoryObjectStore())
    prompts = sample_store(objects)
    most = 0
    for seed in range(250):
        objects.calls.clear()
        prompts.publish(sample_prompt(seed, num_virtual_tokens=20, hidden_size=576), sample_task())
        most = max(most, len(objects.calls))
    prompts.promote("sst2:7", "staging")
    objects.calls.clear()
    prompts.refresh()
    poll = len(objects.calls)
    resolve_us = 1e6 * _median_s(lambda: prompts.resolve("sst2@staging"), 20_000)
    return [
        measured("publish: most object-store calls of 250", most, "calls", target="<= 4", command=COMMAND),
        measured("poll without news", poll, "calls", target="<= 1", command=COMMAND),
        measured("resolve, from a following reader", resolve_us, "µs", target="< 20", command=COMMAND),
    ]


def _cold_start() -> list[Measurement]:
    with tempfile.TemporaryDirectory(prefix="cold-start-") as name:
        _grow(Path(name))
        done = subprocess.run([sys.executable, "-c", _READER, name], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    what = f"cold start, {found['versions']} versions in {found['tasks']} tasks"
    return [
        measured(what, found["seconds"], "s", target="< 3", command=COMMAND),
        measured(f"{what}: memory of the process", found["mebibytes"], "MiB", target="< 500", command=COMMAND),
        measured(f"{what}: object-store calls", found["calls"], "calls", command=COMMAND),
    ]


_READER = """
import json, sys, time
from pathlib import Path
from promptstore.objects.local import LocalObjectStore
from promptstore.store.ledger import Ledger
from promptstore.testing.scripted_objects import ScriptedObjects
objects = ScriptedObjects(LocalObjectStore(Path(sys.argv[1])))
start = time.perf_counter()
ledger = Ledger.open(objects, actor="bench")
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) / 1024  # ru_maxrss would count the process that started this one, too
print(json.dumps({
    "seconds": seconds, "mebibytes": peak, "calls": len(objects.calls), "tasks": len(ledger.state.tasks),
    "versions": sum(len(task.versions) for task in ledger.state.tasks.values()),
}))
"""


def _grow(folder: Path) -> None:
    """A log in which each of 10,000 tasks was retrained, gated and promoted ten times, and its newest checkpoint.

    Written past the driver, which would wait for the disk ten thousand times.
    """
    ledger = Ledger.create(LocalObjectStore(folder), actor="bench")
    commits, number, digest = list[Commit](), 0, ledger.header.digest
    checkpoint_at = TASKS * VERSIONS // PER_COMMIT // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    checkpoint = b""
    for number in range(1, checkpoint_at + TAIL + 1):
        named = "0" * 64 if names_checkpoint(number) else None
        if number == checkpoint_at + 1:
            checkpoint = encode_checkpoint(fold(ledger.state, commits))
            named = sha256_hex(checkpoint)
        at = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000000Z"
        operations = tuple(operation for slot in range(PER_COMMIT) for operation in _retrain(number, slot))
        commits.append(Commit(number, f"{number:032x}", digest, at, "trainer", "nightly", operations, named))
        digest = commits[-1].digest
    for key, data in (
        (checkpoint_key(checkpoint_at), checkpoint),
        (HINT_KEY, encode_hint(checkpoint_at)),
        *((commit_key(each.number), each.to_bytes()) for each in commits),
    ):
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_bytes(data)


def _retrain(number: int, slot: int) -> tuple[Operation, ...]:
    """One version of one task, its gate's verdict and its promotion."""
    turn = (number - 1) * PER_COMMIT + slot
    task, version = f"task-{turn % TASKS:05}", turn // TASKS + 1
    verdict = {"verdict": "pass", "metric": "accuracy", "candidate": 0.91, "production": 0.9, "rows": 1000}
    manifest, payload = (hashlib.sha256(f"{kind}{turn}".encode()).hexdigest() for kind in "mp")
    return (
        Publish(task, version, manifest, payload),
        Attest(task, version, "gate", verdict),
        MoveAlias(task, "production", version - 1 or None, version),
    )


def _median_s(act: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
