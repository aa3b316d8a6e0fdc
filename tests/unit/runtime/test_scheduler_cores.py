"""Which engine computes what comes, and on how many of the cores."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from promptstore.runtime.job import GenerateJob
from promptstore.runtime.scheduler import Scheduler
from promptstore.testing.stub_engine import (
    QUICK,
    StubEngine,
    generate,
    score,
    wait_for_answers,
    wait_until,
)


class StubCores:
    """Says who took how many cores, in order, and which threads gave theirs back."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken: list[int] = []
        self.idle: list[str] = []

    def take(self, count: int) -> None:
        self.taken.append(count)

    def give_back(self) -> None:
        self.idle.append(threading.current_thread().name)


@contextmanager
def _on_cores(count: int, *engines: StubEngine) -> Iterator[tuple[Scheduler, StubCores]]:
    """Engines that stay in what they begin until the gate opens."""
    for engine in engines:
        engine.gate.clear()
    cores = StubCores(count)
    scheduler = Scheduler(engines, QUICK, cores=cores)
    scheduler.start()
    try:
        yield scheduler, cores
    finally:
        for engine in engines:
            engine.gate.set()
        scheduler.drain(5)
        scheduler.close()


def _endless_text(scheduler: Scheduler, engine: StubEngine, cores: StubCores) -> GenerateJob:
    """One that goes on until it is cancelled; it has begun."""
    text, _ = generate(10_000)
    engine.takes_s = 0.001
    engine.gate.set()
    before = len(cores.taken)
    scheduler.submit([text])
    wait_until(lambda: len(cores.taken) > before + 2)
    return text


@pytest.mark.parametrize(
    ("count", "engine_count", "inputs", "taken", "batches"),
    [
        (2, 2, 1, [2], [1]),
        (2, 2, 15, [2], [15]),
        (2, 2, 16, [1, 1], [8, 8]),
        (8, 2, 16, [4, 4], [8, 8]),
        (7, 3, 40, [2, 2, 3], [14, 14, 12]),
        (8, 1, 16, [8], [16]),
        (1, 2, 16, [1, 1], [8, 8]),
        (2, 4, 16, [1, 1], [8, 8]),
        (2, 4, 1, [2], [1]),
        (4, 4, 40, [1, 1, 1, 1], [10, 10, 10, 10]),
    ],
)
def test_inputs_that_are_worth_it_are_dealt_out_and_so_are_the_cores(
    count: int, engine_count: int, inputs: int, taken: list[int], batches: list[int]
) -> None:
    engines = [StubEngine() for _ in range(engine_count)]
    with _on_cores(count, *engines) as (scheduler, cores):
        asked = [score() for _ in range(inputs)]
        scheduler.submit([job for job, _ in asked])
        wait_until(lambda: scheduler.queued == 0 and len(cores.taken) == len(taken))
        assert cores.taken == taken
        for engine in engines:
            engine.gate.set()
        wait_for_answers("all are answered", [answer for _, answer in asked])
    assert sorted((each for engine in engines for each in engine.batches), reverse=True) == batches


def test_callers_on_their_way_back_count_as_they_did_at_the_last_deal() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        for inputs, taken in ((16, [1, 1]), (15, [1, 1]), (15, [2])):
            before = len(cores.taken)
            for engine in engines:
                engine.gate.clear()
            asked = [score() for _ in range(inputs)]
            scheduler.submit([job for job, _ in asked])
            wait_until(lambda: scheduler.queued == 0 and len(cores.taken) == before + len(taken))  # noqa: B023
            for engine in engines:
                engine.gate.set()
            wait_for_answers("all are answered", [answer for _, answer in asked])
            assert cores.taken[before:] == taken
            wait_until(lambda: not scheduler._taken)


def test_no_engine_begins_on_cores_that_another_one_has() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        asked = [score() for _ in range(4)]
        scheduler.submit([asked[0][0]])
        wait_until(lambda: cores.taken == [2])
        scheduler.submit([job for job, _ in asked[1:]])
        time.sleep(0.05)
        assert (cores.taken, scheduler.queued) == ([2], 3)
        for engine in engines:
            engine.gate.set()
        wait_for_answers("all are answered", [answer for _, answer in asked])
    assert cores.taken[:2] == [2, 2]
    assert sorted(each for engine in engines for each in engine.batches) == [1, 3]


def test_texts_leave_cores_to_inputs_that_come_and_take_them_again() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        text = _endless_text(scheduler, engines[0], cores)
        assert set(cores.taken) == {2}
        job, answer = score()
        scheduler.submit([job])
        assert engines[1].is_inside.wait(5), "the first engine has texts to go on with"
        wait_until(lambda: cores.taken[-3:] == [1, 1, 1])
        engines[1].gate.set()
        wait_for_answers("it is answered", [answer])
        wait_until(lambda: cores.taken[-1] == 2)
        text.is_cancelled = True
    assert engines[0].batches == []


def test_a_call_is_left_to_an_engine_that_has_no_texts() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        text = _endless_text(scheduler, engines[0], cores)
        assert scheduler.call(lambda: threading.current_thread().name).result(5) == "engine-1"
        text.is_cancelled = True


def test_a_call_leaves_cores_to_inputs_that_come() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(4, *engines) as (scheduler, cores):
        hold = threading.Event()
        scheduler.call(lambda: hold.wait(10))
        wait_until(lambda: cores.taken == [2])
        for engine in engines:
            engine.gate.set()
        job, answer = score()
        scheduler.submit([job])
        wait_for_answers("it is answered", [answer])
        assert cores.taken == [2, 2]
        hold.set()


def test_a_thread_gives_its_cores_back_after_a_batch_and_before_it_has_fewer() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        assert cores.idle == ["MainThread"], "it made the engines ready"
        job, answer = score()
        scheduler.submit([job])
        wait_until(lambda: cores.taken == [2])
        assert len(cores.idle) == 1
        for engine in engines:
            engine.gate.set()
        wait_for_answers("it is answered", [answer])
        wait_until(lambda: len(cores.idle) == 2)
        assert {cores.idle[1]} == engines[0].threads | engines[1].threads

        engines[1].gate.clear()
        engines[1].is_inside.clear()
        text = _endless_text(scheduler, engines[0], cores)
        assert len(cores.idle) == 2, "it has texts to go on with"
        job, answer = score()
        scheduler.submit([job])
        assert engines[1].is_inside.wait(5)
        assert cores.idle[2:] == ["engine-0"]
        text.is_cancelled = True
