"""Garbage collection in the middle of publishes of the very bytes that it is about to delete."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Event, Lock

import pytest

from promptstore.core.operation import Condemn
from promptstore.core.state import PromptVersion
from promptstore.errors import NotFoundError, StoreUnavailableError
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.garbage import collect_garbage
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.scripted_objects import Call, CrashError, Fault, ScriptedObjects
from promptstore.testing.store_samples import IMPATIENT, sample_prompt, sample_store, sample_task, ticking_clock

NO_GRACE = timedelta(0)
# Without any grace, a publish whose every call is disturbed comes to no end: it must be left alone some day.
EVERY_CALLS = 30
SECONDS = 2.0


def open_(objects: ObjectStore) -> PromptStore:
    return PromptStore(Ledger.open(objects, actor="other", patience=IMPATIENT), objects)


def collect(objects: ObjectStore) -> int:
    return len(collect_garbage(open_(objects).ledger, grace=NO_GRACE, dry_run=False))


def leave_orphan(objects: ObjectStore) -> None:
    dying = ScriptedObjects(objects, _dies_at("commits/"))
    with pytest.raises(CrashError):
        open_(dying).publish(sample_prompt(), sample_task())


def leave_expired(objects: ObjectStore) -> None:
    """The payload, but not the manifest, is that of another task's version, too."""
    for task in ("sst2", "other"):
        open_(objects).publish(sample_prompt(), sample_task(task))
        open_(objects).expire([f"{task}:1"])


def leave_condemned(objects: ObjectStore) -> None:
    """A collector died before it deleted what it had condemned."""
    leave_orphan(objects)
    with pytest.raises(CrashError):
        collect(ScriptedObjects(objects, _dies_at("payloads/", verb="delete")))


def _dies_at(folder: str, verb: str = "put_if_absent") -> Callable[[Call], Fault | None]:
    return lambda call: Fault.CRASH_BEFORE if call.verb == verb and call.key.startswith(folder) else None


def _publish_twice(prompts: PromptStore) -> list[PromptVersion]:
    return [prompts.publish(sample_prompt(), sample_task(task)) for task in ("sst2", "third")]


def _undisturbed_calls() -> int:
    objects = ScriptedObjects(MemoryObjectStore())
    sample_store(objects)
    prompts = open_(objects)
    objects.calls.clear()
    _publish_twice(prompts)
    return len(objects.calls)


@pytest.mark.parametrize("calls", [*([step] for step in range(_undisturbed_calls())), range(EVERY_CALLS)], ids=str)
@pytest.mark.parametrize("leave", [leave_orphan, leave_expired, leave_condemned])
def test_a_collection_before_one_or_every_call_of_a_publish_loses_nothing_acknowledged(
    leave: Callable[[ObjectStore], None], calls: Sequence[int]
) -> None:
    objects = MemoryObjectStore(clock=ticking_clock())
    sample_store(objects).publish(sample_prompt(9), sample_task("kept"))
    leave(objects)
    disturbed = ScriptedObjects(objects)
    prompts = open_(disturbed)
    disturbed.calls.clear()

    one_at_a_time = Lock()  # payload and manifest are put at once

    def collect_before(call: Call) -> None:
        if call.number in calls:
            with one_at_a_time:
                collect(objects)

    disturbed.script = collect_before
    acknowledged = _publish_twice(prompts)
    assert len(disturbed.calls) > calls[-1], "the publish was over before it was disturbed"
    for version in acknowledged:
        pulled = open_(objects).pull(str(version), for_model=None)
        assert pulled.version == version
        assert (pulled.prompt.embeddings == sample_prompt().embeddings).all()
    open_(objects).pull("kept:1", for_model=None)
    assert verify(objects).is_clean
    collect(objects)
    found = verify(objects)
    assert found.is_clean
    assert found.orphans == ()


@dataclass(slots=True)
class Publisher:
    """Publishes a few payloads of one task over and over, pulls them and expires most again; notes what it was told."""

    objects: ScriptedObjects
    task: str
    seed: int
    acknowledged: dict[str, str] = field(default_factory=dict)

    def run(self, until: Event) -> None:
        rng, prompts = random.Random(self.seed), open_(self.objects)
        while not until.is_set():
            with suppress(NotFoundError):  # the other publisher of this task has expired it already
                version = prompts.publish(sample_prompt(rng.randrange(3)), sample_task(self.task))
                self.acknowledged[str(version)] = version.digest
                prompts.pull(str(version), for_model=None)
                if rng.random() < 0.7:
                    prompts.expire([str(version)])

    @property
    def commits_tried(self) -> int:
        return sum(call.verb == "put_if_absent" and call.key.startswith("commits/") for call in self.objects.calls)


def _collect_often(objects: ObjectStore, until: Event) -> int:
    collected = 0
    while not until.is_set():
        with suppress(StoreUnavailableError):  # the other collector, without any grace, took its clock for litter
            collected += collect(objects)
    return collected


def test_publishers_and_collectors_that_race_on_disk_lose_nothing_acknowledged(tmp_path: Path) -> None:
    objects, stopped = LocalObjectStore(tmp_path / "store"), Event()
    sample_store(objects)
    publishers = [Publisher(ScriptedObjects(objects), task, seed) for seed, task in enumerate(("a", "a", "b"))]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(each.run, stopped) for each in publishers]
        collecting = [pool.submit(_collect_often, objects, stopped) for _ in range(2)]
        time.sleep(SECONDS)
        stopped.set()
        for each in running:
            each.result()
        collected = [each.result() for each in collecting]
    prompts = open_(objects)
    operations = [operation for commit in prompts.ledger.commits() for operation in commit.operations]
    condemned = sum(isinstance(each, Condemn) for each in operations)
    conflicts = sum(each.commits_tried for each in publishers) - prompts.state.number + condemned
    told = {version: digest for each in publishers for version, digest in each.acknowledged.items()}
    print(f"{len(told)} versions, {condemned} condemnations, deleted {collected}; {conflicts} conflicts of publishers")
    assert conflicts > 0, "nobody raced"
    assert any(collected), "nothing was collected: the test shows nothing"
    assert verify(objects).is_clean
    versions = {str(each): each for task in prompts.state.tasks.values() for each in task.versions}
    assert {name: versions[name].digest for name in told} == told
    for name in told:
        if not versions[name].is_expired:
            prompts.pull(name, for_model=None)
