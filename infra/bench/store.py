"""The store by itself: object-store calls, resolve, a cold start with 100,000 versions, racing writers."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from infra.bench.cold_start import cold_start
from infra.bench.large_store import TASKS, build_large_store, task_name
from infra.bench.measurement import Measurement, measured
from promptstore.core.commit import CHECKPOINT_EVERY
from promptstore.core.instant import parse_instant
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.store_races import race_threads
from promptstore.testing.store_samples import sample_prompt, sample_task

COMMAND = "python -m infra.bench speed --only store"
PUBLISHED = 2 * CHECKPOINT_EVERY
WRITERS = 16
COMMITS_PER_WRITER = 12


def measurements() -> list[Measurement]:
    """One row per promise of the store."""
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        large = Path(name) / "large"
        build_large_store(large)
        return [
            *_publish_calls(),
            *_poll_calls(LocalObjectStore(large)),
            *_resolve(LocalObjectStore(large)),
            *cold_start(large, COMMAND),
            *_race(LocalObjectStore(Path(name) / "raced")),
        ]


def _publish_calls() -> list[Measurement]:
    """Calls of the port, each of which is one request on S3. The first commit of a process also probes the store."""
    objects = ScriptedObjects(MemoryObjectStore())
    Ledger.create(objects, actor="bench")
    writer = _opened(objects)
    each = [_calls(objects, partial(_publish, writer, turn)) for turn in range(PUBLISHED)]
    newcomer = _opened(objects)
    both = _calls(objects, partial(_publish, newcomer, PUBLISHED))
    return [
        measured(f"publish: most of {PUBLISHED}", max(each), "calls", target="<= 4", command=COMMAND),
        measured("publish: median", statistics.median(each), "calls", command=COMMAND),
        measured("publish: the first of a process, a checkpoint due", both, "calls", command=COMMAND),
    ]


def _poll_calls(large: ObjectStore) -> list[Measurement]:
    rows = []
    small = MemoryObjectStore()
    writer = PromptStore(Ledger.create(small, actor="bench"), small)
    for turn in range(10):
        _publish(writer, turn)
    for tasks, objects in ((10, ScriptedObjects(small)), (TASKS, ScriptedObjects(large))):
        reader = _opened(objects)
        objects.calls.clear()
        if len(reader.refresh().tasks) != tasks or objects.counts["get"] != len(objects.calls):
            raise RuntimeError(f"a poll of {tasks} tasks made the calls {objects.calls}")
        rows.append(measured(f"poll, {tasks:,} tasks", len(objects.calls), "GETs", target="== 1", command=COMMAND))
    return rows


def _resolve(large: ObjectStore) -> list[Measurement]:
    """`task@production` of every task in random order, from text to version; then the same again."""
    reader = _opened(large)
    refs = [f"{task_name(index)}@production" for index in range(TASKS)]
    random.Random(0).shuffle(refs)  # noqa: S311 - no secret
    first = [_microseconds(partial(reader.resolve, ref)) for ref in refs]
    again = [_microseconds(partial(reader.resolve, ref)) for ref in refs]
    return [
        measured("resolve: median", statistics.median(again), "µs", target="< 20", command=COMMAND),
        measured("resolve: 99 %", statistics.quantiles(again, n=100)[98], "µs", command=COMMAND),
        measured("resolve: a task's first after a cold start", statistics.median(first), "µs", command=COMMAND),
    ]


def _race(objects: ObjectStore) -> list[Measurement]:
    """Threads that publish to one task on local disk, each through a ledger of its own; the rate by the log's dates."""
    ledger = Ledger.create(objects, actor="bench")
    raced = race_threads(objects, WRITERS, COMMITS_PER_WRITER)
    dates = [parse_instant(commit.at, "commit") for commit in ledger.commits()]
    if len(dates) != WRITERS * COMMITS_PER_WRITER:
        raise RuntimeError(f"{len(dates)} commits are in the log, {WRITERS * COMMITS_PER_WRITER} were acknowledged")
    rate = (len(dates) - 1) / (dates[-1] - dates[0]).total_seconds()
    conflicts = sum(each.conflicts for each in raced)
    return [
        measured(f"{WRITERS} racing writers, local disk", rate, "publishes/s", command=COMMAND),
        measured(f"{WRITERS} racing writers: conflicts", conflicts, "conflicts", target="> 0", command=COMMAND),
    ]


def _opened(objects: ObjectStore) -> PromptStore:
    return PromptStore(Ledger.open(objects, actor="bench"), objects)


def _publish(writer: PromptStore, turn: int) -> None:
    writer.publish(sample_prompt(turn), sample_task(task_name(turn % 10)))


def _calls(objects: ScriptedObjects, act: Callable[[], object]) -> int:
    before = len(objects.calls)
    act()
    return len(objects.calls) - before


def _microseconds(act: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    act()
    return (time.perf_counter_ns() - started) / 1000
