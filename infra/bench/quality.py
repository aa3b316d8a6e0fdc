"""Accuracy against PEFT's prompt tuning, and the orderings of Lester et al. 2021, on real weights and text.

About two hours on two quiet cores. What is finished is kept in build/quality-cells, so it can be stopped and go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import platformdirs

from infra.bench.measurement import Measurement, measured
from infra.bench.tuning_cells import Cells
from infra.bench.tuning_peft import PeftSettings, train_with_peft
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import find_model, open_model
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.ensemble import combine
from promptstore.tuning.evaluate import EvaluationCase, evaluate, evaluate_all
from promptstore.tuning.events import FitFinished, FitResult, ValidationReport
from promptstore.tuning.fit import fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.rows import Rows
from promptstore.tuning.search import candidates, search, winner

COMMAND = "make bench-quality"
SOURCE = "asset:smollm2-135m"
SEEDS = (0, 1, 2)
# Rows at the end of the training split that choose our best step; neither side trains on them.
SELECTION_ROWS = 150


@dataclass(frozen=True, slots=True)
class Budget:
    """What both sides get of one task."""

    steps: int
    batch_size: int
    eval_rows: int = 500


BUDGETS = {
    "sst2": Budget(100, 16),
    "trec6": Budget(100, 16),
    "ag_news": Budget(100, 16),
    "boolq": Budget(60, 8, 300),
}
LESTER_TASK = "trec6"


class QualityBench:
    """The model, the peer's copy of it, and the cells."""

    def __init__(self, cells: Cells) -> None:
        cache = platformdirs.user_cache_path("promptstore")
        self._folder = str(find_model(SOURCE, cache_dir=cache).folder)
        self._model = open_model(SOURCE, cache_dir=cache)
        self._cells = cells

    def rows(self) -> list[Measurement]:
        return [*self._against_peft(), *self._defaults(), *self._orderings()]

    def _against_peft(self) -> list[Measurement]:
        rows, advantages, ratios = [], [], []
        for task in BUDGETS:
            ours = self._cells.get(f"{task}-ours", lambda task=task: self._ours(task))
            peft = [self._cells.get(f"{task}-peft-{seed}", lambda s=seed, t=task: self._peft(t, s)) for seed in SEEDS]
            theirs = [cell["accuracy"] for cell in peft]
            untuned = self._cells.get(f"{task}-untuned", lambda task=task: self._untuned(task))
            advantage = mean(ours["accuracy"]) - mean(theirs)
            advantages.append(advantage)
            ratios.append(_time_to(ours["curve"], mean(theirs)) / mean(cell["train_s"] for cell in peft))
            rows += [
                _row(f"{task}: untuned accuracy", untuned["accuracy"]),
                _row(f"{task}: ours, mean of three seeds", mean(ours["accuracy"])),
                _row(f"{task}: ours, standard deviation", stdev(ours["accuracy"])),
                _row(f"{task}: PEFT, mean of three seeds", mean(theirs)),
                _row(f"{task}: PEFT, standard deviation", stdev(theirs)),
                _row(f"{task}: ours - PEFT", advantage, ">= 0"),
            ]
        return [
            *rows,
            _row("ours - PEFT, mean of the tasks", mean(advantages), ">= 0.02"),
            _row("wall clock to PEFT's final accuracy / PEFT's, mean of the tasks", mean(ratios), "<= 0.3333"),
        ]

    def _defaults(self) -> list[Measurement]:
        """Our default against the best of our own search, on the same budget."""
        gaps = []
        for task in ("sst2", "trec6"):
            found = self._cells.get(f"{task}-search", lambda task=task: self._search(task))
            ours = self._cells.get(f"{task}-ours", lambda task=task: self._ours(task))
            gaps.append(found["accuracy"] - ours["accuracy"][0])
        return [_row("best of our search - our default, mean of sst2 and trec6", mean(gaps), "<= 0.01")]

    def _orderings(self) -> list[Measurement]:
        """Lester et al. 2021, figure 3 and table 3; of the last step, without selection."""
        cell = self._cells.get("lester", self._lester)
        by = {name: mean(values) for name, values in cell["accuracy"].items()}
        rows = [_row(f"{LESTER_TASK}, {name}", value) for name, value in by.items()]
        rows += [
            _row("class labels - uniform", by["labels"] - by["uniform"], "> 0"),
            _row("sampled vocabulary - uniform", by["vocabulary"] - by["uniform"], "> 0"),
            _row("5 virtual tokens - 1", by["length 5"] - by["length 1"], "> 0"),
            _row("20 virtual tokens - 5", by["vocabulary"] - by["length 5"], "> 0"),
            _row("|100 virtual tokens - 20|", abs(by["length 100"] - by["vocabulary"]), "<= 0.03"),
            _row("ensemble of five - average member", cell["ensemble"] - cell["ensemble_average"], ">= 0"),
        ]
        return rows

    def _untuned(self, task: str) -> dict[str, Any]:
        return {"accuracy": evaluate(self._model, TASKS[task], None, _held_out(task)).value}

    def _ours(self, task: str) -> dict[str, Any]:
        """Three seeds, fitted together, by our defaults; and the course of seed 0 alone, on the held-out rows."""
        jobs = [_job(task, f"seed {seed}", seed=seed) for seed in SEEDS]
        results = _fitted(self._model, jobs)
        cases = [EvaluationCase(TASKS[task], results[job.name].prompt, _held_out(task)) for job in jobs]
        budget = BUDGETS[task]
        alone = _job(task, "alone", evaluate_every=10, max_validation_rows=0)
        alone = FitJob(alone.name, alone.task, alone.config, alone.train, _held_out(task))
        values = []
        seconds = 0.0
        for event in fit(self._model, [alone]):
            if isinstance(event, ValidationReport):
                values.append((event.step, event.value))
            elif isinstance(event, FitFinished):
                seconds = event.result.seconds
        curve = [(step / budget.steps * seconds, value) for step, value in values]
        return {"accuracy": [found.value for found in evaluate_all(self._model, cases)], "curve": curve}

    def _peft(self, task: str, seed: int) -> dict[str, Any]:
        budget = BUDGETS[task]
        settings = PeftSettings(batch_size=budget.batch_size, seed=seed, dtype=self._model.dtype)
        run = train_with_peft(self._folder, self._model, TASKS[task], _train(task), settings, budget.steps)
        prompt = SoftPrompt(run.prompt, self._model.fingerprint)
        accuracy = evaluate(self._model, TASKS[task], prompt, _held_out(task)).value
        return {"accuracy": accuracy, "train_s": sum(run.step_s)}

    def _search(self, task: str) -> dict[str, Any]:
        job = _job(task, "search", evaluate_every=BUDGETS[task].steps // 4)
        finished = [event for event in search(self._model, candidates(job)) if isinstance(event, FitFinished)]
        best = winner(finished)
        return {
            "winner": best.job,
            "accuracy": evaluate(self._model, TASKS[task], best.result.prompt, _held_out(task)).value,
        }

    def _lester(self) -> dict[str, Any]:
        kinds: dict[str, dict[str, Any]] = {
            "labels": {"initialise": "labels"},
            "vocabulary": {"initialise": "vocabulary"},
            "uniform": {"initialise": "uniform"},
            **{f"length {length}": {"num_virtual_tokens": length} for length in (1, 5, 100)},
        }
        seeds = {name: range(5) if name == "vocabulary" else SEEDS for name in kinds}
        jobs = [
            _job(LESTER_TASK, f"{name}/{seed}", seed=seed, **settings)
            for name, settings in kinds.items()
            for seed in seeds[name]
        ]
        results = _fitted(self._model, jobs)
        cases = [EvaluationCase(TASKS[LESTER_TASK], results[job.name].last, _held_out(LESTER_TASK)) for job in jobs]
        found = dict(zip(results, evaluate_all(self._model, cases), strict=True))
        ensemble = combine([found[f"vocabulary/{seed}"] for seed in range(5)])
        return {
            "accuracy": {name: [found[f"{name}/{seed}"].value for seed in seeds[name]] for name in kinds},
            "ensemble": ensemble.vote.value,
            "ensemble_mean": ensemble.mean.value,
            "ensemble_average": ensemble.average,
            "ensemble_best": ensemble.best,
        }


def measurements() -> list[Measurement]:
    """The rows of `make bench-quality`."""
    return QualityBench(Cells(Path("build") / "quality-cells")).rows()


def _job(task: str, name: str, **settings: Any) -> FitJob:
    budget = BUDGETS[task]
    config = {"steps": budget.steps, "batch_size": budget.batch_size, "evaluate_every": budget.steps // 4}
    selection = load_split(task, "train")[-SELECTION_ROWS:]
    return FitJob(name, _spec(task), TuneConfig.from_mapping({**config, **settings}), _train(task), selection)


def _spec(task: str) -> TaskSpec:
    return TASKS[task]


def _train(task: str) -> Rows:
    return load_split(task, "train")[:-SELECTION_ROWS]


def _held_out(task: str) -> Rows:
    return load_split(task, "validation")[: BUDGETS[task].eval_rows]


def _fitted(model: FrozenModel, jobs: Sequence[FitJob]) -> dict[str, FitResult]:
    """Results by name, in the order of the jobs."""
    found = {event.job: event.result for event in fit(model, jobs) if isinstance(event, FitFinished)}
    return {job.name: found[job.name] for job in jobs}


def _time_to(curve: Sequence[Sequence[float]], accuracy: float) -> float:
    """Seconds of fitting until the accuracy was reached; the whole fit, three times over, if it never was."""
    return float(next((at for at, value in curve if value >= accuracy), 3 * np.max([at for at, _ in curve])))


def _row(name: str, value: float, target: str = "") -> Measurement:
    return measured(f"quality, {name}", value, "accuracy", target=target, command=COMMAND)
