"""A trial by itself: whom it takes, and what breaks its bounds."""

from dataclasses import replace
from threading import Event

import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.trials import Tally, Trial, TrialJudge
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import (
    Bounds,
    Rollout,
    start_rollout,
)
from promptstore.testing.served import store_of_candidates

KEY = ("sentiment", "production")


@pytest.fixture
def store(model: FrozenModel) -> PromptStore:
    return store_of_candidates(model)


def test_a_larger_share_only_adds_callers(store: PromptStore) -> None:
    callers = [f"caller-{number}" for number in range(200)]

    def takers(share: float) -> set[str]:
        trial = Trial(start_rollout(store, "sentiment:2", share=share), store.resolve("sentiment:2"))
        return {caller for caller in callers if trial.takes(caller)}

    few, half, all_of_them = takers(0.1), takers(0.5), takers(1.0)
    assert few < half < all_of_them == set(callers)
    assert 5 < len(few) < 40


def _trial(store: PromptStore, **bounds: float) -> Trial:
    rollout = Rollout(*KEY, 2, "share", 0.5, replace(Bounds(min_answers=10), **bounds), commit=7)  # type: ignore[arg-type]
    return Trial(rollout, store.resolve("sentiment:2"))


def test_nothing_is_judged_before_there_are_enough_answers(store: PromptStore) -> None:
    trial = _trial(store)
    for _ in range(9):
        trial.note(is_on_trial=True, error=RuntimeError("broken"))
    assert trial.breach() == ""
    trial.note(is_on_trial=True, error=RuntimeError("broken"))
    assert "10 of 10 answers failed" in trial.breach()


def test_what_is_not_its_fault_does_not_count_against_a_version(store: PromptStore) -> None:
    from promptstore.errors import OverloadedError

    trial = _trial(store)
    for _ in range(50):
        trial.note(is_on_trial=True, error=OverloadedError("busy"))
        trial.note(is_on_trial=True, seconds=0.1)
    assert trial.breach() == ""
    assert trial.on_trial.failures == 0


def test_slower_answers_than_the_version_in_place_break_the_bound(store: PromptStore) -> None:
    trial = _trial(store, max_latency_ratio=2.0)
    for _ in range(10):
        trial.note(is_on_trial=True, seconds=0.5)
    assert trial.breach() == ""
    for _ in range(10):
        trial.note(is_on_trial=False, seconds=0.1)
    assert "5.0 times as long" in trial.breach()


def test_a_few_answers_that_took_minutes_do_not_make_a_version_slow(store: PromptStore) -> None:
    trial = _trial(store, max_latency_ratio=1.1)
    for number in range(100):
        trial.note(is_on_trial=False, seconds=0.1)
        trial.note(is_on_trial=True, seconds=300.0 if number % 3 == 0 else 0.1)
    assert trial.breach() == ""
    assert trial.on_trial.median_s == trial.in_place.median_s == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0173, 1.0, 59.0, 1e6])
def test_a_median_is_known_to_two_percent_between_a_millisecond_and_a_quarter_of_an_hour(seconds: float) -> None:
    tally = Tally()
    assert tally.median_s == 0.0
    for each in (seconds / 3, seconds, seconds * 2):
        tally.answer(each)
    assert tally.median_s == pytest.approx(min(max(seconds, 0.001), 0.001 * 2**20), rel=0.022)


def test_a_trial_that_is_over_takes_nobody(store: PromptStore) -> None:
    trial = _trial(store)
    takers = [key for key in map(str, range(100)) if trial.takes(key)]
    assert 30 < len(takers) < 70
    trial.given_up = "a bound is broken"
    assert not any(trial.takes(key) for key in takers)


@pytest.mark.parametrize("is_silent", [False, True])
def test_the_end_waits_for_an_abort_that_is_written_and_for_none_that_hangs(
    store: PromptStore, *, is_silent: bool
) -> None:
    begun, go, written = Event(), Event(), Event()

    def abort(rollout: Rollout, why: str) -> None:
        begun.set()
        go.wait(3)
        written.set()

    judge = TrialJudge(abort, ServerMetrics(), written_within_s=0.05 if is_silent else 60.0)
    trial = _trial(store, min_answers=1)
    trial.note(is_on_trial=True, error=RuntimeError("broken"))
    judge.judge(trial)
    assert begun.wait(10)
    if not is_silent:
        go.set()
    judge.close()
    assert written.is_set() is not is_silent
    go.set()
