import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from promptstore.errors import NotServingError, OverloadedError
from promptstore.runtime.job import Failed, Finished, Generated, GenerateJob, Scored, ScoreJob
from promptstore.runtime.queue import BatchLimits
from promptstore.runtime.sampling import ChosenToken, Sampling
from promptstore.runtime.scheduler import Scheduler, SchedulerLimits
from promptstore.testing.engine_rig import Answer

QUICK = SchedulerLimits(wait_s=0.0)


class StubEngine:
    """Answers without a model: scores are input lengths, answers are `max_tokens` times the token 1.

    gate: closed, it holds the engine inside a call, as a long batch would. takes_s: how long a batch or a
    step takes otherwise.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.is_inside = threading.Event()
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.most_running = 0
        self.fault: Exception | None = None
        self.takes_s = 0.0
        self.started: list[int] = []
        self._running: list[tuple[GenerateJob, int]] = []

    is_padded = True

    @property
    def running(self) -> int:
        return len(self._running)

    def score(self, jobs: Sequence[ScoreJob]) -> None:
        self._enter()
        self.batches.append(len(jobs))
        for job in jobs:
            job.deliver(Scored((float(len(job.input_ids)),), len(jobs)))

    def start(self, jobs: Sequence[GenerateJob]) -> None:
        self._enter()
        self.started.append(len(jobs))
        self._running += [(job, job.sampling.max_tokens) for job in jobs]
        self.most_running = max(self.most_running, len(self._running))

    def step(self) -> None:
        if self._running:
            time.sleep(self.takes_s)
        self._running = [(job, left) for job, left in self._running if not job.is_cancelled]
        for job, _ in self._running:
            job.deliver(Generated(ChosenToken(1), "x"))
        for job, left in self._running:
            if left == 1:
                job.deliver(Finished("", "length"))
        self._running = [(job, left - 1) for job, left in self._running if left > 1]

    def abort(self, error: Exception) -> None:
        for job, _ in self._running:
            job.deliver(Failed(error))
        self._running = []

    def _enter(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.is_inside.set()
        self.gate.wait(timeout=10)
        time.sleep(self.takes_s)
        if self.fault is not None:
            raise self.fault


@contextmanager
def _running(*engines: StubEngine, limits: SchedulerLimits = QUICK) -> Iterator[Scheduler]:
    scheduler = Scheduler(engines, limits)
    scheduler.start()
    try:
        yield scheduler
    finally:
        for engine in engines:
            engine.gate.set()
        scheduler.close()


def _score(length: int = 1) -> tuple[ScoreJob, Answer]:
    answer = Answer()
    return ScoreJob("0" * 64, [1] * length, (), answer.take), answer


def _generate(max_tokens: int) -> tuple[GenerateJob, Answer]:
    answer = Answer()
    return GenerateJob("0" * 64, [1], Sampling(max_tokens), answer.take), answer


def _wait(condition: object, answers: Sequence[Answer]) -> None:
    deadline = time.monotonic() + 10
    while not all(answer.ends for answer in answers):
        assert time.monotonic() < deadline, condition
        time.sleep(0.001)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
    text, _ = _generate(10_000)
    engine.takes_s = 0.001
    engine.gate.set()
    before = len(cores.taken)
    scheduler.submit([text])
    _until(lambda: len(cores.taken) > before + 2)
    return text


def test_jobs_that_wait_together_are_answered_together_on_one_thread() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with _running(engine) as scheduler:
        first, first_answer = _score()
        scheduler.submit([first])
        assert engine.is_inside.wait(5)
        others = [_score() for _ in range(10)]
        for job, _ in others:
            scheduler.submit([job])
        engine.gate.set()
        _wait("all are answered", [first_answer, *(answer for _, answer in others)])
    assert engine.batches == [1, 10]
    assert engine.threads == {"engine-0"}


def test_a_full_queue_refuses_a_whole_request_and_keeps_what_it_has() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with _running(engine, limits=SchedulerLimits(queued=4, wait_s=0.0)) as scheduler:
        blocker, blocker_answer = _score()
        scheduler.submit([blocker])
        assert engine.is_inside.wait(5)
        waiting = [_score() for _ in range(3)]
        scheduler.submit([job for job, _ in waiting])
        with pytest.raises(OverloadedError):
            scheduler.submit([_score()[0], _score()[0]])
        assert scheduler.queued == 3
        engine.gate.set()
        _wait("the queued are answered", [blocker_answer, *(answer for _, answer in waiting)])


def test_jobs_that_nobody_waits_for_keep_no_place_in_the_queue() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with _running(engine, limits=SchedulerLimits(queued=3, wait_s=0.0)) as scheduler:
        scheduler.submit([_score()[0]])
        assert engine.is_inside.wait(5)
        waiting = [_score() for _ in range(3)]
        scheduler.submit([job for job, _ in waiting])
        for job, _ in waiting[1:]:
            job.is_cancelled = True
        others = [_score(), _score()]
        scheduler.submit([job for job, _ in others])
        with pytest.raises(OverloadedError, match="3 inputs wait"):
            scheduler.submit([_score()[0]])
        engine.gate.set()
        _wait("those that are waited for are answered", [waiting[0][1], *(answer for _, answer in others)])
    assert [answer.ends for _, answer in waiting] == [1, 0, 0]


def test_a_job_that_waited_too_long_is_refused_not_answered_late() -> None:
    engine = StubEngine()
    engine.gate.clear()
    now = [0.0]
    scheduler = Scheduler([engine], SchedulerLimits(queue_timeout_s=5.0, wait_s=0.0), clock=lambda: now[0])
    scheduler.start()
    blocker, blocker_answer = _score()
    scheduler.submit([blocker])
    assert engine.is_inside.wait(5)
    late, late_answer = _score()
    scheduler.submit([late])
    now[0] = 6.0
    engine.gate.set()
    _wait("both end", [blocker_answer, late_answer])
    scheduler.close()
    assert blocker_answer.logits == (1.0,)
    assert isinstance(late_answer.error, OverloadedError)


def test_a_waiting_answer_joins_as_soon_as_a_running_one_leaves() -> None:
    engine = StubEngine()
    with _running(engine, limits=SchedulerLimits(running=2, wait_s=0.0)) as scheduler:
        jobs = [_generate(tokens) for tokens in (50, 3, 3, 3)]
        scheduler.submit([job for job, _ in jobs])
        _wait("all end", [answer for _, answer in jobs])
    assert engine.most_running == 2
    assert [len(answer.tokens) for _, answer in jobs] == [50, 3, 3, 3]


def test_a_cancelled_answer_stops() -> None:
    engine = StubEngine()
    with _running(engine) as scheduler:
        job, answer = _generate(10**9)
        scheduler.submit([job])
        while not answer.tokens:
            time.sleep(0.001)
        job.is_cancelled = True
        assert scheduler.drain(timeout_s=5)
    assert answer.ends == 0


def test_calls_run_on_the_engines_thread_between_batches_and_hand_back_errors() -> None:
    with _running(StubEngine()) as scheduler:
        assert scheduler.call(lambda: threading.current_thread().name).result(5) == "engine-0"
        with pytest.raises(ZeroDivisionError):
            scheduler.call(lambda: 1 // 0).result(5)
        assert scheduler.is_alive


def test_draining_answers_what_waits_and_takes_nothing_new() -> None:
    engine = StubEngine()
    engine.gate.clear()
    with _running(engine) as scheduler:
        jobs = [_score() for _ in range(3)]
        scheduler.submit([job for job, _ in jobs])
        threading.Timer(0.05, engine.gate.set).start()
        assert scheduler.drain(timeout_s=5)
        assert all(answer.logits for _, answer in jobs)
        with pytest.raises(NotServingError):
            scheduler.submit([_score()[0]])


def test_closing_tells_everybody_who_still_waits() -> None:
    engine = StubEngine()
    engine.gate.clear()
    scheduler = Scheduler([engine], SchedulerLimits(batch=BatchLimits(rows=1), wait_s=0.0))
    scheduler.start()
    jobs = [_score(), _score()]
    endless, endless_answer = _generate(10**9)
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
    with _running(engine) as scheduler:
        job, answer = _score()
        scheduler.submit([job])
        _wait("the job is told", [answer])
        assert answer.error is engine.fault
        engine.fault = None
        again, again_answer = _score()
        scheduler.submit([again])
        _wait("the next is answered", [again_answer])
        assert again_answer.logits == (1.0,)


def test_engines_share_what_waits_and_answer_side_by_side() -> None:
    engines = [StubEngine(), StubEngine()]
    for engine in engines:
        engine.gate.clear()
    with _running(*engines) as scheduler:
        asked = [_score() for _ in range(20)]
        scheduler.submit([job for job, _ in asked])
        assert all(engine.is_inside.wait(5) for engine in engines)
        assert scheduler.queued == 0
        assert not scheduler.drain(0.05)
        for engine in engines:
            engine.gate.set()
        _wait("all are answered", [answer for _, answer in asked])
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
    with _running(engine, limits=SchedulerLimits(gathering=gathering)) as scheduler:
        first, again = [_score() for _ in range(6)], [_score() for _ in range(6)]
        scheduler.submit([job for job, _ in first])
        _wait("six are answered", [answer for _, answer in first])
        for job, _ in again:
            time.sleep(0.02)
            scheduler.submit([job])
        _wait("and six again", [answer for _, answer in again])
    assert engine.batches[0] == 6
    assert (engine.batches[1] == 6) == (gathering > 0)


@pytest.mark.parametrize("gathering", [50.0, 0.0])
def test_texts_of_callers_that_were_answered_together_begin_together_while_others_go_on(
    monkeypatch: pytest.MonkeyPatch, gathering: float
) -> None:
    monkeypatch.setattr("promptstore.runtime.scheduler.MOST_GATHERING_S", 10.0)
    engine = StubEngine()
    engine.takes_s = 0.02
    with _running(engine, limits=SchedulerLimits(gathering=gathering)) as scheduler:
        first, again = [_generate(3) for _ in range(5)], [_generate(3) for _ in range(5)]
        long, long_answer = _generate(400)
        scheduler.submit([*(job for job, _ in first), long])
        _wait("five are answered", [answer for _, answer in first])
        for job, _ in again:
            time.sleep(0.02)
            scheduler.submit([job])
        had = len(long_answer.text)
        _wait("and five again", [answer for _, answer in again])
        assert len(long_answer.text) > had, "what runs goes on meanwhile"
    assert engine.started[0] == 6
    assert (engine.started[1] == 5) == (gathering > 0)


def test_a_caller_that_is_alone_is_not_kept_waiting() -> None:
    engine = StubEngine()
    with _running(engine, limits=SchedulerLimits(gathering=1000.0)) as scheduler:
        started = time.monotonic()
        for _ in range(5):
            job, answer = _score()
            scheduler.submit([job])
            _wait("it is answered", [answer])
        assert time.monotonic() - started < 2
    assert engine.batches == [1] * 5


def test_an_engine_that_is_free_takes_what_waits_while_another_is_busy() -> None:
    busy, free = StubEngine(), StubEngine()
    with _running(busy, free) as scheduler:
        hold = threading.Event()
        scheduler.call(lambda: hold.wait(10))
        asked = [_score() for _ in range(6)]
        scheduler.submit([job for job, _ in asked])
        _wait("all are answered", [answer for _, answer in asked])
        hold.set()
    assert not (busy.batches and free.batches)  # whichever of them the call held
    assert sum([*busy.batches, *free.batches]) == 6


def test_texts_are_generated_by_the_first_engine_in_one_batch() -> None:
    engines = [StubEngine(), StubEngine()]
    with _running(*engines, limits=SchedulerLimits(running=4, wait_s=0.0)) as scheduler:
        asked = [_generate(50) for _ in range(12)]
        scheduler.submit([job for job, _ in asked])
        _wait("all are answered", [answer for _, answer in asked])
        scored = [_score() for _ in range(4)]
        scheduler.submit([job for job, _ in scored])
        _wait("all are answered", [answer for _, answer in scored])
    assert [engine.most_running for engine in engines] == [4, 0]


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
        (4, 4, 40, [1, 1, 1, 1], [10, 10, 10, 10]),
    ],
)
def test_inputs_that_are_worth_it_are_dealt_out_and_so_are_the_cores(
    count: int, engine_count: int, inputs: int, taken: list[int], batches: list[int]
) -> None:
    engines = [StubEngine() for _ in range(engine_count)]
    with _on_cores(count, *engines) as (scheduler, cores):
        asked = [_score() for _ in range(inputs)]
        scheduler.submit([job for job, _ in asked])
        _until(lambda: scheduler.queued == 0 and len(cores.taken) == len(taken))
        assert cores.taken == taken
        for engine in engines:
            engine.gate.set()
        _wait("all are answered", [answer for _, answer in asked])
    assert sorted((each for engine in engines for each in engine.batches), reverse=True) == batches


def test_callers_on_their_way_back_count_as_they_did_at_the_last_deal() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        for inputs, taken in ((16, [1, 1]), (15, [1, 1]), (15, [2])):
            before = len(cores.taken)
            for engine in engines:
                engine.gate.clear()
            asked = [_score() for _ in range(inputs)]
            scheduler.submit([job for job, _ in asked])
            _until(lambda: scheduler.queued == 0 and len(cores.taken) == before + len(taken))  # noqa: B023
            for engine in engines:
                engine.gate.set()
            _wait("all are answered", [answer for _, answer in asked])
            assert cores.taken[before:] == taken
            _until(lambda: not scheduler._taken)


def test_no_engine_begins_on_cores_that_another_one_has() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        asked = [_score() for _ in range(4)]
        scheduler.submit([asked[0][0]])
        _until(lambda: cores.taken == [2])
        scheduler.submit([job for job, _ in asked[1:]])
        time.sleep(0.05)
        assert (cores.taken, scheduler.queued) == ([2], 3)
        for engine in engines:
            engine.gate.set()
        _wait("all are answered", [answer for _, answer in asked])
    assert cores.taken[:2] == [2, 2]
    assert sorted(each for engine in engines for each in engine.batches) == [1, 3]


def test_texts_leave_cores_to_inputs_that_come_and_take_them_again() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        text = _endless_text(scheduler, engines[0], cores)
        assert set(cores.taken) == {2}
        job, answer = _score()
        scheduler.submit([job])
        assert engines[1].is_inside.wait(5), "the first engine has texts to go on with"
        _until(lambda: cores.taken[-3:] == [1, 1, 1])
        engines[1].gate.set()
        _wait("it is answered", [answer])
        _until(lambda: cores.taken[-1] == 2)
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
        _until(lambda: cores.taken == [2])
        for engine in engines:
            engine.gate.set()
        job, answer = _score()
        scheduler.submit([job])
        _wait("it is answered", [answer])
        assert cores.taken == [2, 2]
        hold.set()


def test_a_thread_gives_its_cores_back_after_a_batch_and_before_it_has_fewer() -> None:
    engines = [StubEngine(), StubEngine()]
    with _on_cores(2, *engines) as (scheduler, cores):
        assert cores.idle == ["MainThread"], "it made the engines ready"
        job, answer = _score()
        scheduler.submit([job])
        _until(lambda: cores.taken == [2])
        assert len(cores.idle) == 1
        for engine in engines:
            engine.gate.set()
        _wait("it is answered", [answer])
        _until(lambda: len(cores.idle) == 2)
        assert {cores.idle[1]} == engines[0].threads | engines[1].threads

        engines[1].gate.clear()
        engines[1].is_inside.clear()
        text = _endless_text(scheduler, engines[0], cores)
        assert len(cores.idle) == 2, "it has texts to go on with"
        job, answer = _score()
        scheduler.submit([job])
        assert engines[1].is_inside.wait(5)
        assert cores.idle[2:] == ["engine-0"]
        text.is_cancelled = True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_scheduler_one_of_whose_threads_has_ended_is_not_alive() -> None:
    class Broken(StubEngine):
        def score(self, jobs: Sequence[ScoreJob]) -> None:
            raise SystemExit(len(jobs))

    with _running(Broken(), Broken()) as scheduler:
        assert scheduler.is_alive
        scheduler.submit([_score()[0]])
        _until(lambda: not scheduler.is_alive)
        assert scheduler.problem
