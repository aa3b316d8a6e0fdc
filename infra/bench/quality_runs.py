"""The fits behind the quality table: ours and PEFT's on the same model, rows, steps and batches."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import platformdirs

from infra.bench.tuning_peft import PeftSettings, train_with_peft
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.core.ensemble import Ensemble
from promptstore.core.prompt import SoftPrompt
from promptstore.lm.source import find_model, open_model
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.ensemble import combine
from promptstore.tuning.evaluate import EvaluationCase, evaluate, evaluate_all
from promptstore.tuning.events import FitFinished, FitResult, ValidationReport
from promptstore.tuning.fit import fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.rows import Rows
from promptstore.tuning.search import candidates, search, winner

SOURCE = "asset:smollm2-135m"
# Rows at the end of the training split that choose our best step; neither side trains on them.
SELECTION_ROWS = 150
LESTER_TASK = "trec6"
# With 20 virtual tokens, as our defaults have.
LESTER_SETTINGS: dict[str, dict[str, Any]] = {
    "labels": {"initialise": "labels"},
    "vocabulary": {"initialise": "vocabulary"},
    "uniform": {"initialise": "uniform"},
    **{f"length-{length}": {"num_virtual_tokens": length, "initialise": "vocabulary"} for length in (1, 5, 100)},
}


@dataclass(frozen=True, slots=True)
class Budget:
    """What both sides get of one task."""

    steps: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.steps}x{self.batch_size}-every-held-out-row"


BUDGETS = {
    "sst2": Budget(60, 16),
    "trec6": Budget(100, 16),
    "ag_news": Budget(60, 16),
    "boolq": Budget(40, 8),
}


class QualityRuns:
    """The model, and the files that the peer loads its own copy from. Every method gives one cell.

    Seconds are of CPU time on a CPU, which another load changes less, and of the wall clock on a GPU.
    """

    def __init__(self) -> None:
        cache = platformdirs.user_cache_path("promptstore")
        self._folder = str(find_model(SOURCE, cache_dir=cache).folder)
        self._model = open_model(SOURCE, cache_dir=cache)
        self._is_on_cpu = self._model.device.type == "cpu"
        self._clock = time.process_time if self._is_on_cpu else time.perf_counter

    def untuned(self, task: str) -> dict[str, Any]:
        return {"accuracy": evaluate(self._model, TASKS[task], None, held_out(task)).value}

    def ours(self, task: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Fitted together, by our defaults; the best step, and the last for comparison."""
        jobs = [job(task, f"seed {seed}", seed=seed) for seed in seeds]
        results = list(self._fitted(jobs).values())
        prompts = [result.prompt for result in results] + [result.last for result in results]
        found = evaluate_all(self._model, [EvaluationCase(TASKS[task], each, held_out(task)) for each in prompts])
        values = [each.value for each in found]
        return {
            "accuracy": values[: len(seeds)],
            "last_accuracy": values[len(seeds) :],
            "seconds": results[0].seconds,
        }

    def course(self, task: str) -> dict[str, Any]:
        """Seed 0 alone: seconds of fitting and accuracy on the held-out rows, ten times in all."""
        budget = BUDGETS[task]
        alone = replace(
            job(task, "alone", evaluate_every=budget.steps // 10, max_validation_rows=0), validation=held_out(task)
        )
        values, seconds = [], 0.0
        for event in fit(self._model, [alone], clock=self._clock):
            if isinstance(event, ValidationReport):
                values.append((event.step, event.value))
            elif isinstance(event, FitFinished):
                seconds = event.result.seconds
        return {"course": [(step / budget.steps * seconds, value) for step, value in values]}

    def peft(self, task: str, seed: int) -> dict[str, Any]:
        """PEFT's documented setting, its text naming the labels as in its guide's example."""
        budget = BUDGETS[task]
        labels = " or ".join(label.verbaliser for label in TASKS[task].labels)
        settings = PeftSettings(
            init_text=f"Classify if the text is {labels}:",
            batch_size=budget.batch_size,
            seed=seed,
            dtype=self._model.dtype,
        )
        run = train_with_peft(self._folder, self._model, TASKS[task], train(task), settings, budget.steps)
        prompt = SoftPrompt(run.prompt, self._model.fingerprint)
        accuracy = evaluate(self._model, TASKS[task], prompt, held_out(task)).value
        return {"accuracy": accuracy, "seconds": sum(run.step_cpu_s if self._is_on_cpu else run.step_s)}

    def search(self, task: str) -> dict[str, Any]:
        found = search(self._model, candidates(job(task, "search")))
        best = winner([event for event in found if isinstance(event, FitFinished)])
        return {
            "winner": best.job,
            "accuracy": evaluate(self._model, TASKS[task], best.result.prompt, held_out(task)).value,
        }

    def lester(self, setting: str, seeds: Sequence[int]) -> dict[str, Any]:
        """The last step of every seed, without selection, and what the seeds say together."""
        jobs = [job(LESTER_TASK, f"seed {seed}", seed=seed, **LESTER_SETTINGS[setting]) for seed in seeds]
        prompts = [result.last for result in self._fitted(jobs).values()]
        task, rows = TASKS[LESTER_TASK], held_out(LESTER_TASK)
        members = list(evaluate_all(self._model, [EvaluationCase(task, each, rows) for each in prompts]))
        vote = combine(members, Ensemble(len(members), "vote"))
        return {
            "accuracy": [each.value for each in members],
            "ensemble": vote.value,
            "ensemble_best": vote.member_metrics["member_best_accuracy"],
        }

    def _fitted(self, jobs: Sequence[FitJob]) -> dict[str, FitResult]:
        """Results by name, in the order of the jobs."""
        events = fit(self._model, jobs, clock=self._clock)
        found = {event.job: event.result for event in events if isinstance(event, FitFinished)}
        return {each.name: found[each.name] for each in jobs}


def job(task: str, name: str, **settings: Any) -> FitJob:
    """One fit of ours on the task's budget; `settings` go over the defaults."""
    budget = BUDGETS[task]
    config = {"steps": budget.steps, "batch_size": budget.batch_size, "evaluate_every": budget.steps // 4}
    selection = load_split(task, "train")[-SELECTION_ROWS:]
    return FitJob(name, TASKS[task], TuneConfig.from_mapping({**config, **settings}), train(task), selection)


def train(task: str) -> Rows:
    return load_split(task, "train")[:-SELECTION_ROWS]


def held_out(task: str) -> Rows:
    """All there are: 500 rows know an accuracy of 0.85 to 1.6 points."""
    return load_split(task, "validation")
