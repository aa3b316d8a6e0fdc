"""Writers that know nothing of each other: every acknowledged commit is there exactly once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.verify import verify
from promptstore.testing.servers import S3Server
from promptstore.testing.store_races import Raced, race_processes, race_threads


@dataclass(frozen=True)
class Place:
    """A store that other processes can open, too."""

    url: str
    endpoint: str | None
    objects: ObjectStore


@pytest.fixture(params=["local", pytest.param("seaweedfs", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        objects: ObjectStore = LocalObjectStore(tmp_path / "store")
        yield Place(objects.url, None, objects)
    else:
        server: S3Server = request.getfixturevalue("seaweedfs")
        objects = S3ObjectStore(server.bucket, f"races/{uuid4().hex}", S3Options(endpoint=server.endpoint))
        yield Place(objects.url, server.endpoint, objects)


def check(objects: ObjectStore, raced: list[Raced], commits: int) -> None:
    """Numbers dense, nothing lost, nothing twice, everything readable; and it was a race."""
    conflicts = sum(each.conflicts for each in raced)
    print(f"{len(raced)} writers, {commits} commits, {conflicts} conflicts")
    assert conflicts > 0, "nobody raced"
    acknowledged = {number: digest for each in raced for number, digest in zip(each.numbers, each.digests, strict=True)}
    assert sorted(number for each in raced for number in each.numbers) == list(range(1, commits + 1))
    state = Ledger.open(objects, actor="reader").state
    assert {version.number: version.digest for version in state.task("sst2").versions} == acknowledged
    assert state.number == commits
    found = verify(objects)
    assert found.problems == ()
    assert found.orphans == ()


@pytest.mark.parametrize("writers", [16, 100])
def test_racing_threads_lose_nothing(writers: int) -> None:
    objects = MemoryObjectStore()
    Ledger.create(objects, actor="me")
    check(objects, race_threads(objects, writers, 2), 2 * writers)


@pytest.mark.parametrize("writers", [16, 100])
def test_racing_threads_lose_nothing_on_disk(tmp_path: Path, writers: int) -> None:
    """On S3: tests/integration/objects/test_ledger_races.py."""
    objects = LocalObjectStore(tmp_path / "store")
    Ledger.create(objects, actor="me")
    check(objects, race_threads(objects, writers, 1), writers)


@pytest.mark.slow
@pytest.mark.parametrize(("writers", "warm_up_s"), [(16, 3), (100, 15)])
def test_racing_processes_lose_nothing(place: Place, writers: int, warm_up_s: float) -> None:
    Ledger.create(place.objects, actor="me")
    raced = race_processes(place.url, place.endpoint, writers, 1, warm_up_s=warm_up_s)
    check(place.objects, raced, writers)


@pytest.mark.slow
def test_processes_publish_one_task_two_hundred_times_on_disk(tmp_path: Path) -> None:
    """On S3: tests/integration/objects/test_ledger_races.py."""
    objects = LocalObjectStore(tmp_path / "store")
    Ledger.create(objects, actor="me")
    check(objects, race_processes(objects.url, None, 8, 25, warm_up_s=3), 200)


def test_threads_that_share_a_ledger_queue_up_and_do_not_race() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from promptstore.testing.scripted_objects import ScriptedObjects
    from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

    objects = ScriptedObjects(MemoryObjectStore())
    prompts = sample_store(objects)
    objects.calls.clear()
    with ThreadPoolExecutor(16) as pool:
        versions = list(pool.map(lambda seed: prompts.publish(sample_prompt(seed), sample_task()), range(64)))
    assert sorted(each.number for each in versions) == list(range(1, 65))
    assert len(objects.calls) == 3 * 64
