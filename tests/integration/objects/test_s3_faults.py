"""The S3 driver before a real server that answers badly, late or not at all."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from promptstore.errors import CommitOutcomeUnknownError, NotFoundError, StoreUnavailableError, UnsupportedStoreError
from promptstore.objects.s3 import BROKEN_READ_ATTEMPTS, PLAIN_ATTEMPTS, S3ObjectStore, S3Options
from promptstore.testing.fault_proxy import (
    ArriveLate,
    Corrupt,
    FallSilent,
    FaultProxy,
    Hang,
    HttpFault,
    LoseAnswer,
    ProxiedRequest,
    Refuse,
    Slow,
    Truncate,
    behave,
    fault_proxy,
    once,
)
from promptstore.testing.servers import S3Server

TIMEOUT_S = 2.0


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(seaweedfs.endpoint) as proxy:
        yield proxy


@pytest.fixture
def store(seaweedfs: S3Server, proxy: FaultProxy) -> S3ObjectStore:
    options = S3Options(endpoint=proxy.endpoint, timeout_s=TIMEOUT_S)
    return S3ObjectStore(seaweedfs.bucket, f"faults/{uuid4().hex}", options)


def _anything(_: ProxiedRequest) -> bool:
    return True


def _creates(proxy: FaultProxy) -> int:
    return sum(request.is_create for request in proxy.requests)


@pytest.mark.parametrize(
    "fault",
    [LoseAnswer(), LoseAnswer(500), LoseAnswer(503, "SlowDown"), LoseAnswer(504), Slow(TIMEOUT_S + 1)],
    ids=["cut", "500", "503", "504", "time-out"],
)
def test_a_create_whose_answer_is_lost_is_unknown_and_is_not_sent_again(
    store: S3ObjectStore, proxy: FaultProxy, fault: HttpFault
) -> None:
    proxy.script = once(fault, _anything)
    with pytest.raises(CommitOutcomeUnknownError, match="may have been created"):
        store.put_if_absent("commits/1", b"mine")
    assert _creates(proxy) == 1
    assert store.get("commits/1") == b"mine"
    assert store.put_if_absent("commits/1", b"mine") is False


@pytest.mark.parametrize("fault", [Refuse(0), Refuse(500), Refuse(503, "SlowDown")], ids=["cut", "500", "503"])
def test_a_create_that_never_arrived_is_unknown_too(store: S3ObjectStore, proxy: FaultProxy, fault: HttpFault) -> None:
    proxy.script = once(fault, _anything)
    with pytest.raises(CommitOutcomeUnknownError):
        store.put_if_absent("commits/1", b"mine")
    with pytest.raises(NotFoundError):
        store.get("commits/1")
    assert store.put_if_absent("commits/1", b"mine") is True


def test_a_create_that_arrives_after_its_time_out_is_unknown_and_then_there(
    store: S3ObjectStore, proxy: FaultProxy
) -> None:
    proxy.script = once(ArriveLate(0.3), _anything)
    with pytest.raises(CommitOutcomeUnknownError, match="may be yet"):
        store.put_if_absent("commits/1", b"late")
    proxy.wait_for_late_arrivals()
    assert store.get("commits/1") == b"late"


def test_a_conflicting_create_in_progress_is_tried_again(store: S3ObjectStore, proxy: FaultProxy) -> None:
    answers: list[HttpFault] = [Refuse(409, "ConditionalRequestConflict"), Refuse(429, "TooManyRequests")] * 3
    proxy.script = lambda request: answers.pop() if request.is_create and answers else None
    assert store.put_if_absent("commits/1", b"mine") is True
    assert _creates(proxy) == 7


def test_a_create_refused_409_for_ever_changed_nothing(store: S3ObjectStore, proxy: FaultProxy) -> None:
    proxy.script = lambda request: Refuse(409, "ConditionalRequestConflict") if request.is_create else None
    with pytest.raises(StoreUnavailableError, match="409"):
        store.put_if_absent("commits/1", b"mine")


def test_a_server_that_does_not_know_create_only_writes_is_named(store: S3ObjectStore, proxy: FaultProxy) -> None:
    proxy.script = lambda _: Refuse(501, "NotImplemented")
    with pytest.raises(UnsupportedStoreError, match="If-None-Match"):
        store.put_if_absent("commits/1", b"mine")


@pytest.mark.parametrize(
    "fault",
    [Refuse(0), Refuse(500), Refuse(503, "SlowDown"), LoseAnswer(), LoseAnswer(500), Slow(TIMEOUT_S + 1)],
    ids=["cut", "500", "503", "answer cut", "answer 500", "time-out"],
)
def test_plain_calls_are_repeated(store: S3ObjectStore, proxy: FaultProxy, fault: HttpFault) -> None:
    proxy.script = once(fault, _anything)
    store.put("a/1", b"one")
    proxy.script = once(fault, _anything)
    assert store.get("a/1") == b"one"
    proxy.script = once(fault, _anything)
    assert [info.key for info in store.list("a/")] == ["a/1"]
    proxy.script = once(fault, _anything)
    store.delete("a/1")
    assert list(store.list("")) == []


def test_plain_calls_give_up_on_a_server_that_stays_down(store: S3ObjectStore, proxy: FaultProxy) -> None:
    proxy.script = lambda _: Refuse(503, "SlowDown")
    with pytest.raises(StoreUnavailableError, match="fewer requests"):
        store.get("a/1")
    assert 1 < len(proxy.requests) < 20


def test_a_read_that_breaks_off_is_read_again(store: S3ObjectStore, proxy: FaultProxy) -> None:
    store.put("a/1", b"0123456789" * 1000)
    proxy.script = once(Truncate(), _anything)
    assert store.get("a/1") == b"0123456789" * 1000
    proxy.script = once(Truncate(), _anything)
    assert [info.key for info in store.list("a/")] == ["a/1"]


def test_a_read_that_always_breaks_off_fails_and_never_gives_a_part(store: S3ObjectStore, proxy: FaultProxy) -> None:
    store.put("a/1", b"0123456789" * 1000)
    proxy.script = lambda _: Truncate()
    with pytest.raises(StoreUnavailableError, match="a/1"):
        store.get("a/1")
    with pytest.raises(StoreUnavailableError):
        list(store.list("a/"))


def test_a_flipped_bit_is_given_as_it_came_for_the_reader_to_find(store: S3ObjectStore, proxy: FaultProxy) -> None:
    store.put("a/1", b"0123456789")
    proxy.script = once(Corrupt(), _anything)
    assert store.get("a/1") == b"0123446789"


@pytest.fixture
def hasty(seaweedfs: S3Server, proxy: FaultProxy) -> S3ObjectStore:
    return S3ObjectStore(seaweedfs.bucket, f"faults/{uuid4().hex}", S3Options(endpoint=proxy.endpoint, timeout_s=0.3))


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.get("a/1"),
        lambda store: list(store.list("a/")),
        lambda store: store.put("a/1", b"two"),
        lambda store: store.delete("a/1"),
    ],
    ids=["get", "list", "put", "delete"],
)
def test_a_server_that_never_answers_has_the_attempts_of_one_call(
    hasty: S3ObjectStore, proxy: FaultProxy, ask: Callable[[S3ObjectStore], object]
) -> None:
    hasty.put("a/1", b"one")
    before = len(proxy.requests)
    proxy.script = lambda _: Hang()
    with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.3 s"):
        ask(hasty)
    assert len(proxy.requests) - before == PLAIN_ATTEMPTS
    proxy.script = behave
    assert hasty.get("a/1") == b"one"


def test_a_read_that_falls_silent_is_read_again_and_in_the_end_given_up(
    hasty: S3ObjectStore, proxy: FaultProxy
) -> None:
    hasty.put("a/1", b"0123456789" * 1000)
    proxy.script = once(FallSilent(), _anything)
    assert hasty.get("a/1") == b"0123456789" * 1000
    assert [info.key for info in hasty.list("a/")] == ["a/1"]
    before = len(proxy.requests)
    proxy.script = lambda _: FallSilent()
    with pytest.raises(StoreUnavailableError, match="a/1"):
        hasty.get("a/1")
    assert len(proxy.requests) - before == BROKEN_READ_ATTEMPTS
