"""Batches out of a queue, in front of one engine or several."""

import threading
import time
from collections.abc import Sequence

import pytest

from promptstore.errors import NotServingError, OverloadedError
from promptstore.runtime.job import ScoreJob
from promptstore.runtime.queue import BatchLimits
from promptstore.runtime.scheduler import Scheduler, SchedulerLimits
from promptstore.testing.stub_engine import (
    StubEngine,
    generate,
    running_scheduler,
    score,
    wait_for_answers,
    wait_until,
)


def test_jobs_that_wait_together_are_answered_together_on_one_thread() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with running_scheduler(engine) as scheduler:
        first, first_answer = score()
        scheduler.submit([first])
        assert engine.is_inside.wait(5)
        others = [score() for _ in range(10)]
        for job, _ in others:
            scheduler.submit([job])
        engine.gate.set()
        wait_for_answers("all are answered", [first_answer, *(answer for _, answer in others)])
    assert engine.batches == [1, 10]
    assert engine.threads == {"engine-0"}


def test_a_full_queue_refuses_a_whole_request_and_keeps_what_it_has() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with running_scheduler(engine, limits=SchedulerLimits(queued=4, wait_s=0.0)) as scheduler:
        blocker, blocker_answer = score()
        scheduler.submit([blocker])
        assert engine.is_inside.wait(5)
        waiting = [score() for _ in range(3)]
        scheduler.submit([job for job, _ in waiting])
        with pytest.raises(OverloadedError):
            scheduler.submit([score()[0], score()[0]])
        assert scheduler.queued == 3
        engine.gate.set()
        wait_for_answers("the queued are answered", [blocker_answer, *(answer for _, answer in waiting)])


def test_jobs_that_nobody_waits_for_keep_no_place_in_the_queue() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with running_scheduler(engine, limits=SchedulerLimits(queued=3, wait_s=0.0)) as scheduler:
        scheduler.submit([score()[0]])
        assert engine.is_inside.wait(5)
        waiting = [score() for _ in range(3)]
        scheduler.submit([job for job, _ in waiting])
        for job, _ in waiting[1:]:
            job.is_cancelled = True
        others = [score(), score()]
        scheduler.submit([job for job, _ in others])
        with pytest.raises(OverloadedError, match="3 inputs wait"):
            scheduler.submit([score()[0]])
        engine.gate.set()
        wait_for_answers("those that are waited for are answered", [waiting[0][1], *(answer for _, answer in others)])
    assert [answer.ends for _, answer in waiting] == [1, 0, 0]


def test_a_job_that_waited_too_long_is_refused_not_answered_late() -> None:
    engine = StubEngine()
    engine.gate.clear()
    now = [0.0]
    scheduler = Scheduler([engine], SchedulerLimits(queue_timeout_s=5.0, wait_s=0.0), clock=lambda: now[0])
    scheduler.start()
    blocker, blocker_answer = score()
    scheduler.submit([blocker])
    assert engine.is_inside.wait(5)
    late, late_answer = score()
    scheduler.submit([late])
    now[0] = 6.0
    engine.gate.set()
    wait_for_answers("both end", [blocker_answer, late_answer])
    scheduler.close()
    assert blocker_answer.logits == (1.0,)
    assert isinstance(late_answer.error, OverloadedError)


def test_a_waiting_answer_joins_as_soon_as_a_running_one_leaves() -> None:
    engine = StubEngine()
    with running_scheduler(engine, limits=SchedulerLimits(running=2, wait_s=0.0)) as scheduler:
        jobs = [generate(tokens) for tokens in (50, 3, 3, 3)]
        scheduler.submit([job for job, _ in jobs])
        wait_for_answers("all end", [answer for _, answer in jobs])
    assert engine.most_running == 2
    assert [len(answer.tokens) for _, answer in jobs] == [50, 3, 3, 3]


def test_a_cancelled_answer_stops() -> None:
    engine = StubEngine()
    with running_scheduler(engine) as scheduler:
        job, answer = generate(10**9)
        scheduler.submit([job])
        while not answer.tokens:
            time.sleep(0.001)
        job.is_cancelled = True
        assert scheduler.drain(timeout_s=5)
    assert answer.ends == 0


def test_calls_run_on_the_engines_thread_between_batches_and_hand_back_errors() -> None:
    with running_scheduler(StubEngine()) as scheduler:
        assert scheduler.call(lambda: threading.current_thread().name).result(5) == "engine-0"
        with pytest.raises(ZeroDivisionError):
            scheduler.call(lambda: 1 // 0).result(5)
        assert scheduler.is_alive


def test_draining_answers_what_waits_and_takes_nothing_new() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with running_scheduler(engine) as scheduler:
        jobs = [score() for _ in range(3)]
        scheduler.submit([job for job, _ in jobs])
        threading.Timer(0.05, engine.gate.set).start()
        assert scheduler.drain(timeout_s=5)
        assert all(answer.logits for _, answer in jobs)
        with pytest.raises(NotServingError):
            scheduler.submit([score()[0]])


def test_closing_tells_everybody_who_still_waits() -> None:
    engine = StubEngine()
    engine.gate.clear()
    scheduler = Scheduler([engine], SchedulerLimits(batch=BatchLimits(rows=1), wait_s=0.0))
    scheduler.start()
    jobs = [score(), score()]
    endless, endless_answer = generate(10**9)
    scheduler.submit([job for job, _ in jobs] + [endless])
    assert engine.is_inside.wait(5)
    threading.Timer(0.05, engine.gate.set).start()
    scheduler.close()
    assert [answer.ends for _, answer in jobs] + [endless_answer.ends] == [1, 1, 1]
    assert isinstance(jobs[1][1].error, NotServingError)
    assert isinstance(endless_answer.error, NotServingError)


def test_the_thread_survives_an_engine_that_fails_and_the_jobs_are_told() -> None:
    engine = StubEngine()
    engine.fault = RuntimeError("the device is gone")
    with running_scheduler(engine) as scheduler:
        job, answer = score()
        scheduler.submit([job])
        wait_for_answers("the job is told", [answer])
        assert answer.error is engine.fault
        engine.fault = None
        again, again_answer = score()
        scheduler.submit([again])
        wait_for_answers("the next is answered", [again_answer])
        assert again_answer.logits == (1.0,)


def test_engines_share_what_waits_and_answer_side_by_side() -> None:
    engines = [StubEngine(), StubEngine()]
    for engine in engines:
        engine.gate.clear()
    with running_scheduler(*engines) as scheduler:
        asked = [score() for _ in range(20)]
        scheduler.submit([job for job, _ in asked])
        assert all(engine.is_inside.wait(5) for engine in engines)
        assert scheduler.queued == 0
        assert not scheduler.drain(0.05)
        for engine in engines:
            engine.gate.set()
        wait_for_answers("all are answered", [answer for _, answer in asked])
        assert scheduler.drain(5)
    assert [engine.batches for engine in engines] == [[10], [10]]
    assert engines[0].threads | engines[1].threads == {"engine-0", "engine-1"}


@pytest.mark.parametrize("gathering", [50.0, 0.0])
def test_callers_that_were_answered_together_are_back_together_before_the_next_batch(
    monkeypatch: pytest.MonkeyPatch, gathering: float
) -> None:
    monkeypatch.setattr("promptstore.runtime.scheduler.MOST_GATHERING_S", 10.0)
    engine = StubEngine()
    engine.takes_s = 0.1
    with running_scheduler(engine, limits=SchedulerLimits(gathering=gathering)) as scheduler:
        first, again = [score() for _ in range(6)], [score() for _ in range(6)]
        scheduler.submit([job for job, _ in first])
        wait_for_answers("six are answered", [answer for _, answer in first])
        for job, _ in again:
            time.sleep(0.02)
            scheduler.submit([job])
        wait_for_answers("and six again", [answer for _, answer in again])
    assert engine.batches[0] == 6
    assert (engine.batches[1] == 6) == (gathering > 0)


@pytest.mark.parametrize("gathering", [50.0, 0.0])
def test_texts_of_callers_that_were_answered_together_begin_together_while_others_go_on(
    monkeypatch: pytest.MonkeyPatch, gathering: float
) -> None:
    monkeypatch.setattr("promptstore.runtime.scheduler.MOST_GATHERING_S", 10.0)
    engine = StubEngine()
    engine.takes_s = 0.02
    with running_scheduler(engine, limits=SchedulerLimits(gathering=gathering)) as scheduler:
        first, again = [generate(3) for _ in range(5)], [generate(3) for _ in range(5)]
        long, long_answer = generate(400)
        scheduler.submit([*(job for job, _ in first), long])
        wait_for_answers("five are answered", [answer for _, answer in first])
        for job, _ in again:
            time.sleep(0.02)
            scheduler.submit([job])
        had = len(long_answer.text)
        wait_for_answers("and five again", [answer for _, answer in again])
        assert len(long_answer.text) > had, "what runs goes on meanwhile"
    assert engine.started[0] == 6
    assert (engine.started[1] == 5) == (gathering > 0)


def test_a_caller_that_is_alone_is_not_kept_waiting() -> None:
    engine = StubEngine()
    with running_scheduler(engine, limits=SchedulerLimits(gathering=1000.0)) as scheduler:
        started = time.monotonic()
        for _ in range(5):
            job, answer = score()
            scheduler.submit([job])
            wait_for_answers("it is answered", [answer])
        assert time.monotonic() - started < 2
    assert engine.batches == [1] * 5


def test_an_engine_that_is_free_takes_what_waits_while_another_is_busy() -> None:
    busy, free = StubEngine(), StubEngine()
    with running_scheduler(busy, free) as scheduler:
        hold = threading.Event()
        scheduler.call(lambda: hold.wait(10))
        asked = [score() for _ in range(6)]
        scheduler.submit([job for job, _ in asked])
        wait_for_answers("all are answered", [answer for _, answer in asked])
        hold.set()
    assert not (busy.batches and free.batches)  # whichever of them the call held
    assert sum([*busy.batches, *free.batches]) == 6


def test_texts_are_generated_by_the_first_engine_in_one_batch() -> None:
    engines = [StubEngine(), StubEngine()]
    with running_scheduler(*engines, limits=SchedulerLimits(running=4, wait_s=0.0)) as scheduler:
        asked = [generate(50) for _ in range(12)]
        scheduler.submit([job for job, _ in asked])
        wait_for_answers("all are answered", [answer for _, answer in asked])
        scored = [score() for _ in range(4)]
        scheduler.submit([job for job, _ in scored])
        wait_for_answers("all are answered", [answer for _, answer in scored])
    assert [engine.most_running for engine in engines] == [4, 0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_scheduler_one_of_whose_threads_has_ended_is_not_alive() -> None:
    class Broken(StubEngine):
        def score(self, jobs: Sequence[ScoreJob]) -> None:
            raise SystemExit(len(jobs))

    with running_scheduler(Broken(), Broken()) as scheduler:
        assert scheduler.is_alive
        scheduler.submit([score()[0]])
        wait_until(lambda: not scheduler.is_alive)
        assert scheduler.problem
