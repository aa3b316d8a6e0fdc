"""Successive halving, and ensembles."""

from dataclasses import replace

import numpy as np
import pytest

from promptstore.errors import InvalidInputError
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import sentiment_job
from promptstore.tuning.events import FitFinished, StepReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.search import RungReached, candidates, search, winner

GRID = {"learning_rate": (1e-9, 0.01, 1e-8), "initialise": ("vocabulary", "random")}
OPTIONS = FitOptions(report_every=4)


def test_candidates_are_the_grid_over_the_job() -> None:
    found = candidates(sentiment_job(), GRID)
    assert len({job.name for job in found}) == 6
    assert found[2].name == "one[learning_rate=0.01,initialise=vocabulary]"
    assert (found[2].config.learning_rate, found[2].config.steps) == (0.01, 12)
    with pytest.raises(InvalidInputError, match="did you mean 'seed'"):
        candidates(sentiment_job(), {"sed": (1, 2)})


def test_a_search_drops_the_worse_and_finishes_the_better() -> None:
    model = tiny_llama()
    jobs = candidates(sentiment_job(steps=48, evaluate_every=12, num_virtual_tokens=8), GRID)
    events = list(search(model, jobs, rungs=(0.25, 0.5), keep=0.5, options=OPTIONS))
    rungs = [event for event in events if isinstance(event, RungReached)]
    assert [(rung.step, len(rung.kept), len(rung.dropped)) for rung in rungs] == [(12, 3, 3), (24, 2, 1)]
    assert "learning_rate=0.01" in rungs[0].kept[0]
    finished = [event for event in events if isinstance(event, FitFinished)]
    assert {event.job for event in finished} == set(rungs[1].kept)
    assert "learning_rate=0.01" in winner(finished).job
    dropped = [event.step for event in events if isinstance(event, StepReport) and event.job in rungs[0].dropped]
    assert max(dropped) == 12


def test_the_winner_of_a_search_is_what_it_would_be_alone() -> None:
    model = tiny_llama()
    jobs = candidates(sentiment_job(steps=24, evaluate_every=6), GRID)
    best = winner([event for event in search(model, jobs, options=OPTIONS) if isinstance(event, FitFinished)])
    alone = next(
        event
        for event in fit(model, [next(job for job in jobs if job.name == best.job)])
        if isinstance(event, FitFinished)
    )
    np.testing.assert_allclose(best.result.prompt.embeddings, alone.result.prompt.embeddings, rtol=1e-3, atol=1e-4)


def test_candidates_of_unequal_length_are_refused() -> None:
    jobs = [sentiment_job("a", steps=10), sentiment_job("b", steps=20)]
    with pytest.raises(InvalidInputError, match="equal steps"):
        list(search(tiny_llama(), jobs))


def test_one_candidate_is_simply_fitted() -> None:
    events = list(search(tiny_llama(), [replace(sentiment_job(), name="only")], options=OPTIONS))
    assert not [event for event in events if isinstance(event, RungReached)]
    assert [event.job for event in events if isinstance(event, FitFinished)] == ["only"]
