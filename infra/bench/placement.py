"""Prompts before and after the input at equal time: `python -m infra.bench.placement`; ten minutes on a quiet core.

The training rows are few, so that epochs repeat and the inputs' keys and values are read from where they are kept.
Times are CPU seconds. Writes build/placement.json.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs

from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.core.task import Placement
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.store.files import write_atomically
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import StepReport, ValidationReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_job import FitJob

SOURCE = "asset:smollm2-135m"
FILE = Path("build") / "placement.json"
STUDIED, TIMED = "ag_news", ("ag_news", "boolq")
ROWS, HELD_OUT = 320, 150
STEPS: dict[Placement, int] = {"before": 60, "after": 120}
RATES: dict[Placement, tuple[float, ...]] = {"before": (0.03, 0.1), "after": (0.03, 0.1, 0.3)}


def main() -> None:
    model = open_model(SOURCE, cache_dir=platformdirs.user_cache_path("promptstore"))
    found: dict[str, Any] = {}
    for task in TIMED:
        for placement in STEPS:
            found[f"{task}, {placement}: CPU seconds of a step, first and later epochs"] = step_s(
                model, task, placement
            )
            print(json.dumps(found, indent=2), flush=True)
    for placement in STEPS:
        found[f"{STUDIED}, {placement}: accuracy by learning rate and step"] = courses(model, placement)
        print(json.dumps(found, indent=2), flush=True)
    write_atomically(FILE, json.dumps(found, indent=2).encode() + b"\n")


def step_s(model: FrozenModel, task: str, placement: Placement, batch_size: int = 8) -> tuple[float, float]:
    """Of the first epoch and of those after it, the first step left out; three steps are an epoch."""
    job = _job(task, placement, "timed", steps=9, batch_size=batch_size, evaluate_every=9, warmup_steps=0)
    job = replace(job, train=job.train[: 3 * batch_size], validation=job.validation[:2])
    rates = {
        event.step: event.examples_per_s
        for event in fit(model, [job], options=FitOptions(report_every=1), clock=time.process_time)
        if isinstance(event, StepReport)
    }
    first, later = ([batch_size / rates[step] for step in steps] for steps in (range(2, 4), range(4, 10)))
    return (sum(first) / len(first), sum(later) / len(later))


def courses(model: FrozenModel, placement: Placement) -> dict[str, list[tuple[int, float]]]:
    """Accuracy on held-out rows, of every learning rate; fitted together."""
    jobs = [
        _job(STUDIED, placement, f"{rate}", learning_rate=rate, steps=STEPS[placement], evaluate_every=30)
        for rate in RATES[placement]
    ]
    found: dict[str, list[tuple[int, float]]] = {job.name: [] for job in jobs}
    for event in fit(model, jobs):
        if isinstance(event, ValidationReport):
            found[event.job].append((event.step, round(event.value, 4)))
    return found


def _job(task: str, placement: Placement, name: str, **settings: Any) -> FitJob:
    spec = replace(TASKS[task], placement=placement)
    rows, held_out = load_split(task, "train")[:ROWS], load_split(task, "validation")[:HELD_OUT]
    return FitJob(name, spec, TuneConfig.from_mapping({**settings, "max_validation_rows": 0}), rows, held_out)


if __name__ == "__main__":
    main()
