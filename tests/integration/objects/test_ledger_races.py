"""Many writers of one store on a real S3 server."""

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from uuid import uuid4

import pytest

from promptstore.core.state import PromptVersion
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.patience import DEFAULT_PATIENCE
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.servers import S3Server
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

SPAWN = multiprocessing.get_context("spawn")
Place = tuple[str, str, str]
Told = tuple[list[tuple[int, str]], int]


@pytest.fixture(params=["seaweedfs", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def _objects(endpoint: str, bucket: str, prefix: str) -> S3ObjectStore:
    return S3ObjectStore(bucket, prefix, S3Options(endpoint=endpoint))


def _publish_many(objects: ScriptedObjects, seeds: Iterable[int], wait: Callable[[], object]) -> Told:
    """What one writer was told: number and digest of each publish; and how many creates of commits it lost."""
    store = sample_store(objects, patience=DEFAULT_PATIENCE)
    wait()
    told = [(each.number, each.digest) for each in (_publish(store, seed) for seed in seeds)]
    creates = sum(call.verb == "put_if_absent" and call.key.startswith("commits/") for call in objects.calls)
    return told, creates - len(told)


def _publish(store: PromptStore, seed: int) -> PromptVersion:
    return store.publish(sample_prompt(seed), sample_task("sst2"))


def _work(place: Place, seeds: Iterable[int], start: Barrier, told: "multiprocessing.Queue[Told]") -> None:
    told.put(_publish_many(ScriptedObjects(_objects(*place)), seeds, start.wait))


def _is_whole(place: Place, told: list[Told], expected: int) -> None:
    acknowledged = [each for mine, _ in told for each in mine]
    state = sample_store(_objects(*place)).state
    assert sorted(number for number, _ in acknowledged) == list(range(1, expected + 1)), (
        "a gap, or a number given twice"
    )
    assert Counter(acknowledged) == Counter((each.number, each.digest) for each in state.task("sst2").versions)
    conflicts = sum(lost for _, lost in told)
    print(f"{expected} versions by {len(told)} writers, {conflicts} conflicts")
    assert conflicts > 0, "the writers never met: no race was seen"


def test_processes_that_share_nothing_publish_one_task_two_hundred_times_without_a_gap(server: S3Server) -> None:
    place = (server.endpoint, server.bucket, f"race/{uuid4().hex}")
    sample_store(_objects(*place))
    start, told = SPAWN.Barrier(4), SPAWN.Queue()
    writers = [
        SPAWN.Process(target=_work, args=(place, range(each * 50, each * 50 + 50), start, told)) for each in range(4)
    ]
    for writer in writers:
        writer.start()
    heard = [told.get(timeout=240) for _ in writers]
    for writer in writers:
        writer.join()
    _is_whole(place, heard, 200)


@pytest.mark.parametrize("writers", [16, 100])
def test_racing_threads_each_get_a_version_of_their_own(server: S3Server, writers: int) -> None:
    place = (server.endpoint, server.bucket, f"race/{uuid4().hex}")
    sample_store(_objects(*place))
    objects, start = _objects(*place), threading.Barrier(writers)
    with ThreadPoolExecutor(writers) as pool:
        told = list(pool.map(lambda seed: _publish_many(ScriptedObjects(objects), [seed], start.wait), range(writers)))
    _is_whole(place, told, writers)
