"""A fit never feels its tracking server: what fails is retried, spooled, said, and sent later."""

import logging
from pathlib import Path
from threading import Event as Signal

import pytest

from promptstore.testing.tracking_sink import MemorySink
from promptstore.tracking.delivery import Delivery, Patience, send_spool
from promptstore.tracking.events import Event, MetricsLogged, Point, RunStarted, TagsSet
from promptstore.tracking.port import RunHeader
from promptstore.tracking.spool import Spool

QUICK = Patience(interval_s=0.001, rest=0, retries_s=(0, 0), return_s=0, close_s=5)
STUBBORN = Patience(interval_s=0.001, rest=0, retries_s=(0, 0), return_s=3600, close_s=5)
STARTED = RunStarted(RunHeader("job/sst2", "sst2", "sst2"), at_ms=1)


def loss(step: int) -> MetricsLogged:
    return MetricsLogged("job/sst2", (Point("loss", 0.5, step, step),))


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "job.jsonl")


def test_everything_arrives_in_order(sink: MemorySink, spool: Spool) -> None:
    delivery = Delivery(sink, spool, patience=QUICK)
    delivery.put(STARTED)
    for step in range(500):
        delivery.put(loss(step))
    report = delivery.close()
    assert [point.step for point in sink.runs["job/sst2"].points] == list(range(500))
    assert (report.spool, report.error, report.refused) == (None, None, ())


def test_the_run_id_is_known_as_soon_as_the_run_is_sent(sink: MemorySink, spool: Spool) -> None:
    delivery = Delivery(sink, spool, patience=Patience(interval_s=3600))
    delivery.put(STARTED)
    assert delivery.run_id("job/sst2", timeout_s=5) == "run-0"
    delivery.close()


def test_a_passing_fault_is_retried_and_leaves_no_trace(sink: MemorySink, spool: Spool) -> None:
    sink.failures_left = 2
    delivery = Delivery(sink, spool, patience=STUBBORN)
    delivery.put(STARTED)
    delivery.put(loss(1))
    report = delivery.close()
    assert len(sink.runs["job/sst2"].points) == 1
    assert (report.error, report.spool) == (None, None)


def test_a_dead_server_spools_says_so_and_the_spool_can_be_sent_later(
    sink: MemorySink, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    sink.failures_left = -1
    delivery = Delivery(sink, spool, patience=STUBBORN)
    with caplog.at_level(logging.WARNING):
        delivery.put(STARTED)
        assert delivery.run_id("job/sst2", timeout_s=5) is None
        for step in range(100):
            delivery.put(loss(step))
        report = delivery.close()
    assert report.error == "memory: switched off"
    assert report.spool == spool.path
    assert report.spooled > 0
    assert "keeping records in" in caplog.text
    sink.failures_left = 0
    again = send_spool(spool, sink)
    assert again.error is None
    assert spool.is_empty
    assert [point.step for point in sink.runs["job/sst2"].points] == list(range(100))


def test_a_server_that_dies_halfway_gets_the_rest_with_the_run_named_again(sink: MemorySink, spool: Spool) -> None:
    delivery = Delivery(sink, spool, patience=STUBBORN)
    delivery.put(STARTED)
    assert delivery.run_id("job/sst2", timeout_s=5)
    sink.failures_left = -1
    delivery.put(loss(1))
    delivery.close()
    assert [type(each.event) for each in spool.read()] == [RunStarted, MetricsLogged]


def test_a_server_that_comes_back_gets_the_spool_first(sink: MemorySink, spool: Spool) -> None:
    sink.failures_left = 3  # the first event's three tries
    delivery = Delivery(sink, spool, patience=QUICK)
    delivery.put(STARTED)
    assert delivery.run_id("job/sst2", timeout_s=5) in {None, "run-0"}
    for step in range(50):
        delivery.put(loss(step))
    report = delivery.close()
    assert (report.error, report.spool) == (None, None)
    assert [point.step for point in sink.runs["job/sst2"].points] == list(range(50))


def test_a_repeated_job_sends_first_what_its_first_try_spooled(sink: MemorySink, spool: Spool) -> None:
    spool.append([STARTED, loss(1)])
    delivery = Delivery(sink, spool, patience=QUICK)
    delivery.put(STARTED)
    assert delivery.run_id("job/sst2", timeout_s=5) == "run-0"
    delivery.put(loss(2))
    delivery.close()
    assert [point.step for point in sink.runs["job/sst2"].points] == [1, 2]
    assert spool.is_empty


def test_what_the_server_never_takes_is_said_and_holds_nothing_up(sink: MemorySink, spool: Spool) -> None:
    delivery = Delivery(sink, spool, patience=QUICK)
    delivery.put(TagsSet("nobody", {"a": "b"}))
    delivery.put(STARTED)
    delivery.put(loss(1))
    report = delivery.close()
    assert report.refused == ("run nobody was never started",)
    assert len(sink.runs["job/sst2"].points) == 1
    assert spool.is_empty


def test_a_sink_that_breaks_in_an_unforeseen_way_spools_instead_of_losing(spool: Spool) -> None:
    class Broken(MemorySink):
        def send(self, event: Event) -> None:  # noqa: ARG002
            raise ZeroDivisionError("surprise")

    delivery = Delivery(Broken(), spool, patience=STUBBORN)
    delivery.put(STARTED)
    report = delivery.close()
    assert report.error == "ZeroDivisionError: surprise"
    assert [each.event for each in spool.read()] == [STARTED]


def test_a_server_that_hangs_does_not_hang_the_end_of_the_job(spool: Spool) -> None:
    answers = Signal()

    class Hanging(MemorySink):
        def send(self, event: Event) -> None:  # noqa: ARG002
            answers.wait(30)

    delivery = Delivery(Hanging(), spool, patience=Patience(interval_s=0.001, close_s=0.05))
    delivery.put(STARTED)
    delivery.put(loss(1))
    report = delivery.close()
    answers.set()
    assert report.error == "no answer within 0.05 s"
    assert report.spooled == 2


def test_an_unreadable_spool_is_set_aside_and_said(sink: MemorySink, spool: Spool) -> None:
    spool.path.write_text("rubbish\n")
    delivery = Delivery(sink, spool, patience=QUICK)
    delivery.put(STARTED)
    report = delivery.close()
    assert "set aside" in report.refused[0]
    assert sink.run_id("job/sst2") == "run-0"


def test_a_spool_that_cannot_be_written_says_what_is_lost(sink: MemorySink, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    sink.failures_left = -1
    delivery = Delivery(sink, Spool(blocked / "job.jsonl"), patience=STUBBORN)
    delivery.put(STARTED)
    report = delivery.close()
    assert "1 records are lost" in report.refused[0]
