"""What the defaults of a fit are chosen by: `python -m infra.bench.defaults [TASK…]`, one table for each task.

Each setting differs from the defaults in one thing. It is fitted with three seeds on training rows and judged at the
last step by training rows that were left out; the held-out rows of the quality table are never looked at. A setting
takes some ten minutes on a CPU's core and ten seconds on a GPU; what is finished is kept in build/defaults-cells.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import platformdirs

from infra.bench.quality_runs import BUDGETS, SOURCE, Budget
from infra.bench.quality_table import spread
from infra.bench.tuning_cells import KeptCell, folder_of_device
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.evaluate import EvaluationCase, evaluate_all
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit import fit
from promptstore.tuning.fit_job import FitJob

CELLS = Path("build") / "defaults-cells"
SEEDS = (0, 1, 2)
JUDGED_ROWS = 500
DEFAULT_BUDGET = Budget(60, 16)
DEFAULT_TASKS = ("trec6", "sst2", "ag_news", "boolq", "uci_sentiment", "sms_spam")
TEXT = "a text that names the labels"
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "the defaults": {},
    "learning_rate = 0.01": {"learning_rate": 0.01},
    "learning_rate = 0.1": {"learning_rate": 0.1},
    "learning_rate = 0.3": {"learning_rate": 0.3},
    "initialise = labels": {"initialise": "labels"},
    "initialise = vocabulary": {"initialise": "vocabulary"},
    f"initialise = {TEXT}": {"initialise": TEXT},
    f"initialise = {TEXT}, learning_rate = 0.1": {"initialise": TEXT, "learning_rate": 0.1},
    "loss = labels": {"loss": "labels"},
    "schedule = constant": {"schedule": "constant"},
    "warmup_steps = 0": {"warmup_steps": 0},
    "residual_width = 64": {"residual_width": 64},
    "num_virtual_tokens = 50": {"num_virtual_tokens": 50},
    "num_virtual_tokens = 100": {"num_virtual_tokens": 100},
}


def main() -> None:
    """Compute what is missing of the named tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", choices=list(TASKS))
    model = open_model(SOURCE, cache_dir=platformdirs.user_cache_path("promptstore"))
    for task in parser.parse_args().tasks or DEFAULT_TASKS:
        print("\n".join(table(model, task)), flush=True)


def table(model: FrozenModel, task: str) -> Iterator[str]:
    """A Markdown table, a row for each setting."""
    budget = BUDGETS.get(task, DEFAULT_BUDGET)
    yield f"\n| {task}, {budget.steps} steps of {budget.batch_size} | accuracy | cross-entropy over the labels |"
    yield "|---|---|---|"
    for name, changed in SETTINGS.items():
        settings = {key: _text(TASKS[task]) if value == TEXT else value for key, value in changed.items()}
        configs = [_config(budget, seed, settings) for seed in SEEDS]
        cell = KeptCell(CELLS / folder_of_device() / configs[0].digest[:12] / f"{task}, {name}.json")
        found = cell.get(lambda configs=configs: _measured(model, task, configs))
        yield f"| {name} | {spread(found['accuracy'])} | {mean(found['loss']):.3f} |"


def _measured(model: FrozenModel, task: str, configs: Sequence[TuneConfig]) -> dict[str, Any]:
    rows = load_split(task, "train")
    train, judged = rows[:-JUDGED_ROWS], rows[-JUDGED_ROWS:]
    # The only look during a fit is at its end, so that nothing is chosen by it.
    jobs = [FitJob(f"seed {config.seed}", TASKS[task], config, train, judged[:1]) for config in configs]
    prompts = [event.result.last for event in fit(model, jobs) if isinstance(event, FitFinished)]
    found = evaluate_all(model, [EvaluationCase(TASKS[task], prompt, judged) for prompt in prompts])
    return {
        "accuracy": [each.value for each in found],
        "loss": [-float(np.mean(each.columns["log_probability"])) for each in found],
    }


def _config(budget: Budget, seed: int, settings: Mapping[str, Any]) -> TuneConfig:
    fixed = {"steps": budget.steps, "batch_size": budget.batch_size, "evaluate_every": budget.steps, "seed": seed}
    return TuneConfig.from_mapping({**fixed, **settings})


def _text(task: TaskSpec) -> str:
    return f"text:Classify if the text is {' or '.join(label.verbaliser for label in task.labels)}:"


if __name__ == "__main__":
    main()
