"""A store on a real S3 server behind a network that fails: what was acknowledged is there, exactly once."""

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest

from promptstore.core.operation import Publish
from promptstore.errors import CommitOutcomeUnknownError, StoreUnavailableError
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.prompt_store import PromptStore
from promptstore.store.verify import verify
from promptstore.testing.fault_proxy import (
    ArriveLate,
    Corrupt,
    FaultProxy,
    HttpFault,
    LoseAnswer,
    ProxiedRequest,
    Refuse,
    Script,
    Slow,
    Truncate,
    fault_proxy,
)
from promptstore.testing.servers import S3Server
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task

TIMEOUT_S = 1.0
FAULTS: dict[str, HttpFault] = {
    "refused 409": Refuse(409, "ConditionalRequestConflict"),
    "refused 412": Refuse(412, "PreconditionFailed"),
    "refused 500": Refuse(500),
    "refused 503": Refuse(503, "SlowDown"),
    "never arrived": Refuse(0),
    "answer lost": LoseAnswer(),
    "answered 412": LoseAnswer(412, "PreconditionFailed"),
    "answered 500": LoseAnswer(500),
    "answered 503": LoseAnswer(503, "SlowDown"),
    "too late": ArriveLate(0.2),
    "timed out": Slow(TIMEOUT_S + 0.3),
    "truncated": Truncate(),
    "corrupted": Corrupt(),
}


class Place:
    """One store's prefix, reached directly and through the proxy."""

    def __init__(self, server: S3Server, proxy: FaultProxy) -> None:
        self._bucket, self._prefix = server.bucket, f"ledger/{uuid4().hex}"
        self._endpoints = {False: server.endpoint, True: proxy.endpoint}
        self.proxy = proxy
        self.timeout_s = 10.0
        sample_store(self.objects(faulty=False))

    def objects(self, *, faulty: bool) -> S3ObjectStore:
        options = S3Options(endpoint=self._endpoints[faulty], timeout_s=self.timeout_s)
        return S3ObjectStore(self._bucket, self._prefix, options)

    def store(self, *, faulty: bool) -> PromptStore:
        return sample_store(self.objects(faulty=faulty))


@pytest.fixture
def place(seaweedfs: S3Server) -> Iterator[Place]:
    with fault_proxy(seaweedfs.endpoint) as proxy:
        yield Place(seaweedfs, proxy)


def _sometimes(fault: HttpFault, share: float, seed: int) -> Script:
    choose = random.Random(seed)
    writes_only = isinstance(fault, Refuse | LoseAnswer) and fault.status in {409, 412}

    def script(request: ProxiedRequest) -> HttpFault | None:
        if writes_only and not request.is_create:
            return None
        return fault if choose.random() < share else None

    return script


def _publish_until_told(store: PromptStore, task: str, seed: int) -> tuple[str, int]:
    """What a caller does: repeat until the store says that it is done."""
    while True:
        try:
            version = store.publish(sample_prompt(seed), sample_task(task), metrics={"seed": seed})
            return version.digest, version.number
        except (CommitOutcomeUnknownError, StoreUnavailableError):
            continue


def _published(place: Place) -> Counter[tuple[str, int]]:
    """Every publish in the log, read without faults, by manifest and number."""
    operations = [each for commit in place.store(faulty=False).ledger.commits() for each in commit.operations]
    return Counter((each.manifest, each.number) for each in operations if isinstance(each, Publish))


@pytest.mark.parametrize("name", FAULTS)
def test_after_each_fault_every_acknowledged_commit_is_there_exactly_once(place: Place, name: str) -> None:
    if isinstance(FAULTS[name], Slow):
        place.timeout_s = TIMEOUT_S
    place.proxy.script = _sometimes(FAULTS[name], share=0.15, seed=1)
    store = _open_until_open(place)
    acknowledged = [_publish_until_told(store, "sst2", seed) for seed in range(8)]
    place.proxy.wait_for_late_arrivals()
    assert place.proxy.faults > 2, "next to nothing went wrong: the test shows nothing"
    assert _published(place) == Counter(acknowledged)
    assert [number for _, number in acknowledged] == list(range(1, 9))
    clean = place.store(faulty=False)
    for digest, number in acknowledged:
        assert clean.pull(f"sst2:{number}", for_model=None).version.digest == digest
    assert verify(place.objects(faulty=False)).is_clean


def test_racing_writers_behind_every_fault_at_once_lose_and_double_nothing(place: Place) -> None:
    choose = random.Random(7)
    harmful = [fault for name, fault in FAULTS.items() if "412" not in name and name != "timed out"]

    def script(_: ProxiedRequest) -> HttpFault | None:
        return choose.choice(harmful) if choose.random() < 0.1 else None

    def write(writer: int) -> list[tuple[str, int]]:
        store = _open_until_open(place)
        together.wait()
        return [_publish_until_told(store, "sst2", writer * 100 + number) for number in range(5)]

    place.proxy.script, together = script, Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        acknowledged = [each for mine in pool.map(write, range(8)) for each in mine]
    place.proxy.wait_for_late_arrivals()
    assert _published(place) == Counter(acknowledged)
    assert sorted(number for _, number in acknowledged) == list(range(1, 41))
    assert verify(place.objects(faulty=False)).is_clean
    creates = sum(request.is_create and "/commits/" in request.path for request in place.proxy.requests)
    print(f"40 commits by 8 writers took {creates} tries: {creates - 40} conflicts and faults")
    assert creates > 40, "no race and no fault was seen"


def _open_until_open(place: Place) -> PromptStore:
    while True:
        try:
            return place.store(faulty=True)
        except (CommitOutcomeUnknownError, StoreUnavailableError):
            continue
