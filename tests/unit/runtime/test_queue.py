import random

from promptstore.runtime.job import ScoreJob
from promptstore.runtime.queue import BatchLimits, JobQueue


def _job(length: int) -> ScoreJob:
    return ScoreJob("0" * 64, [1] * length, (), lambda _: None)


def _queue(lengths: list[int]) -> JobQueue[ScoreJob]:
    queue: JobQueue[ScoreJob] = JobQueue()
    for at, length in enumerate(lengths):
        queue.add(_job(length), now=float(at))
    return queue


def _lengths(queue: JobQueue[ScoreJob], limits: BatchLimits, *, is_padded: bool = True) -> list[int]:
    return [len(job.input_ids) for job in queue.take_batch(limits, is_padded=is_padded)]


def test_a_batch_holds_the_oldest_job_and_those_nearest_in_length() -> None:
    queue = _queue([10, 50, 11, 49, 9, 48])
    assert _lengths(queue, BatchLimits(rows=3)) == [10, 11, 9]
    assert _lengths(queue, BatchLimits(rows=3)) == [50, 49, 48]


def test_padded_tokens_stay_within_the_limit_but_a_long_input_passes_alone() -> None:
    queue = _queue([100, 10, 10, 10])
    assert _lengths(queue, BatchLimits(rows=8, tokens=20)) == [100]
    assert _lengths(queue, BatchLimits(rows=8, tokens=20)) == [10, 10]
    assert _lengths(queue, BatchLimits(rows=8, tokens=20)) == [10]


def test_where_nothing_is_padded_the_oldest_jobs_go_whatever_their_length() -> None:
    queue = _queue([10, 50, 11, 49, 9])
    assert _lengths(queue, BatchLimits(rows=3), is_padded=False) == [10, 50, 11]
    assert _lengths(queue, BatchLimits(rows=3), is_padded=False) == [49, 9]


def test_tokens_that_are_not_padded_add_up_to_the_limit() -> None:
    queue = _queue([100, 10, 12, 10])
    limits = BatchLimits(rows=8, tokens=30)
    assert [_lengths(queue, limits, is_padded=False) for _ in range(3)] == [[100], [10, 12], [10]]


def test_no_job_starves_and_none_is_lost_or_taken_twice() -> None:
    rng = random.Random(0)
    queue = _queue([rng.randint(1, 60) for _ in range(500)])
    oldest_first: list[int] = []
    taken: list[ScoreJob] = []
    order = {}
    waiting: JobQueue[ScoreJob] = JobQueue()
    for at, job in enumerate(queue.take_all()):
        order[id(job)] = at
        waiting.add(job, now=float(at))
    while len(waiting):
        batch = waiting.take_batch(BatchLimits(rows=8, tokens=256))
        oldest_first.append(min(order[id(job)] for job in batch))
        taken += batch
    assert oldest_first == sorted(oldest_first)
    assert len(taken) == len({id(job) for job in taken}) == 500


def test_cancelled_jobs_take_no_place_in_a_batch() -> None:
    queue = _queue([5, 5, 5, 5])
    jobs = queue.take_all()
    for at, job in enumerate(jobs):
        job.is_cancelled = at in {0, 2}
        queue.add(job, now=0.0)
    assert list(queue.take_batch(BatchLimits(rows=4))) == [jobs[1], jobs[3]]


def test_cancelled_jobs_leave_with_the_batch_that_looks_past_them() -> None:
    queue = _queue([5] * 6)
    jobs = queue.take_all()
    for at, job in enumerate(jobs):
        job.is_cancelled = at in {2, 3, 4}
        queue.add(job, now=0.0)
    assert list(queue.take_batch(BatchLimits(rows=2))) == jobs[:2]
    assert len(queue) == 1
    assert list(queue.take_batch(BatchLimits(rows=2))) == jobs[5:]


def test_expired_jobs_leave_in_order() -> None:
    queue = _queue([1, 2, 3, 4])
    assert [len(job.input_ids) for job in queue.take_expired(before=2.0)] == [1, 2]
    assert len(queue) == 2


def test_no_room_takes_nothing() -> None:
    queue = _queue([1])
    assert list(queue.take_batch(BatchLimits(rows=0))) == []
    assert len(queue) == 1
