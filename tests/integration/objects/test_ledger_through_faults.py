"""A store on a real S3 server behind a network that fails: what was acknowledged is there, exactly once."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import TypeVar
from uuid import uuid4

import pytest

from promptstore.core.operation import Publish
from promptstore.core.ref import PromptRef
from promptstore.errors import CommitOutcomeUnknownError, StoreUnavailableError
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.ledger import Ledger
from promptstore.store.promotion import Promotion, Statement
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
    behave,
    fault_proxy,
)
from promptstore.testing.servers import S3Server
from promptstore.testing.store_samples import IMPATIENT, sample_prompt, sample_store, sample_task

Told = TypeVar("Told")
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


def _until_told(act: Callable[[], Told]) -> Told:
    """What a caller does: repeat until the store says that it is done."""
    while True:
        try:
            return act()
        except (CommitOutcomeUnknownError, StoreUnavailableError):
            continue


def _publish_until_told(store: PromptStore, task: str, seed: int) -> tuple[str, int]:
    version = _until_told(lambda: store.publish(sample_prompt(seed), sample_task(task), metrics={"seed": seed}))
    return version.digest, version.number


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
    return _until_told(lambda: place.store(faulty=True))


def _promote(store: PromptStore, number: int, reason: str) -> None:
    store.promote(f"a:{number}", "staging", reason=reason)


def _release(store: PromptStore, number: int, reason: str) -> None:
    """Two tasks at once, each with a verdict that was not there before."""
    verdict = Statement("gate", {"verdict": "pass", "turn": reason})
    store.release(
        [Promotion(PromptRef(task, number=number), "staging", statements=[verdict]) for task in "ab"], reason=reason
    )


@pytest.mark.parametrize(("move", "tasks"), [(_promote, "a"), (_release, "ab")], ids=["promote", "release"])
def test_moves_whose_answers_are_lost_are_made_exactly_once(
    place: Place, move: Callable[[PromptStore, int, str], None], tasks: str
) -> None:
    clean, turns, choose = place.store(faulty=False), range(8), random.Random(3)
    for task in "ab":
        for seed in range(2):
            clean.publish(sample_prompt(seed), sample_task(task))
    before = clean.state.number
    lost = [fault for name, fault in FAULTS.items() if name.startswith("answer") or name == "too late"]

    def script(request: ProxiedRequest) -> HttpFault | None:
        if request.is_create:
            return choose.choice(lost) if choose.random() < 0.6 else None
        return LoseAnswer() if choose.random() < 0.05 else None

    place.proxy.script = script
    store = _open_until_open(place)
    for turn in turns:
        _until_told(partial(move, store, turn % 2 + 1, str(turn)))
    place.proxy.wait_for_late_arrivals()
    assert place.proxy.faults > 4, "next to nothing went wrong: the test shows nothing"
    made = [(each.commit, each.task, each.after, each.reason) for each in place.store(faulty=False).history()]
    assert sorted(made) == [(before + turn + 1, task, turn % 2 + 1, str(turn)) for turn in turns for task in tasks]
    if move is _release:
        said = [each.body["turn"] for version in clean.refresh().task("b").versions for each in version.attestations]
        assert said == ["0", "2", "4", "6", "1", "3", "5", "7"]
    assert clean.refresh().number == before + len(turns)
    assert verify(place.objects(faulty=False)).is_clean


@pytest.mark.parametrize("folder", ["", "/commits/"], ids=["everything", "commits"])
def test_a_store_that_may_not_be_written_says_so_is_read_on_and_has_nothing_half_done(
    place: Place, folder: str
) -> None:
    place.store(faulty=False).publish(sample_prompt(0), sample_task())
    objects = place.objects(faulty=True)
    before = {info.key for info in objects.list("")}

    def refuse_writes(request: ProxiedRequest) -> HttpFault | None:
        return Refuse(403, "AccessDenied") if request.method != "GET" and folder in request.path else None

    place.proxy.script = refuse_writes
    store = PromptStore(Ledger.open(objects, actor="reader", patience=IMPATIENT), objects)
    for change in (
        lambda: store.publish(sample_prompt(1), sample_task()),
        lambda: store.promote("sst2:1", "staging"),
        lambda: store.expire(["sst2:1"]),
    ):
        with pytest.raises(StoreUnavailableError, match=r"403 AccessDenied .*allow .*s3:PutObject"):
            change()
        assert store.refresh().number == 1
        assert store.pull("sst2:1", for_model=None).version.number == 1
    left = {info.key.partition("/")[0] for info in objects.list("") if info.key not in before}
    assert left == (set() if not folder else {"manifests", "payloads"})
    assert verify(objects).is_clean
    place.proxy.script = behave
    assert store.publish(sample_prompt(1), sample_task()).number == 2
    found = verify(objects)
    assert found.is_clean
    assert found.orphans == ()
