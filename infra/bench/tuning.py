"""Speed of fitting against PEFT's prompt tuning: ratios of examples per second, measured by turns in one run.

In CPU seconds of one thread, which hardly depend on what else the machine does.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import platformdirs
import torch

from infra.bench.measurement import Measurement, measured
from infra.bench.tuning_peft import PeftSettings, train_with_peft
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import find_model, open_model
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import StepReport
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.rows import Rows

COMMAND = "make bench"
SOURCE = "asset:smollm2-135m"
BATCH = 16
# Steps of one turn; the first two are left out, because both sides warm up in them.
STEPS = 5
TURNS = 3
SMALL_TASKS = ("sst2", "trec6", "ag_news", "sms_spam", "uci_sentiment", "rte", "wic", "cb")


def measurements() -> list[Measurement]:
    """The rows of `make bench` that concern tuning. About ten minutes on a quiet core."""
    torch.set_num_threads(1)
    cache = platformdirs.user_cache_path("promptstore")
    folder = str(find_model(SOURCE, cache_dir=cache).folder)
    model = open_model(SOURCE, cache_dir=cache)
    rows = load_split("sst2", "train")[: BATCH * STEPS]
    found = []
    for tokens, targets in ((20, (">= 3", ">= 2")), (100, ("", ""))):
        plain = PeftSettings(num_virtual_tokens=tokens, batch_size=BATCH)
        alike = PeftSettings(num_virtual_tokens=tokens, batch_size=BATCH, dtype=model.dtype, group_by_length=True)
        ours, peft, peft_alike = _by_turns(
            lambda tokens=tokens: _our_step_s(model, [("sst2", rows)], tokens),
            lambda plain=plain: train_with_peft(folder, model, TASKS["sst2"], rows, plain, STEPS).steady_step_cpu_s,
            lambda alike=alike: train_with_peft(folder, model, TASKS["sst2"], rows, alike, STEPS).steady_step_cpu_s,
        )
        name = f"tuning, sst2, {tokens} virtual tokens"
        found += [
            measured(f"{name}: ours", BATCH / ours, "examples/CPU s", command=COMMAND),
            measured(f"{name}: PEFT + Trainer", BATCH / peft, "examples/CPU s", command=COMMAND),
            measured(f"{name}: ours / PEFT + Trainer", peft / ours, "x", target=targets[0], command=COMMAND),
            measured(
                f"{name}: ours / PEFT in our dtype, grouped", peft_alike / ours, "x", target=targets[1], command=COMMAND
            ),
        ]
    return [*found, _eight_prompts(folder, model)]


def _eight_prompts(folder: str, model: FrozenModel) -> Measurement:
    """A step of eight prompts fitted together against eight steps of PEFT, one for each task."""
    data = [(task, load_split(task, "train")[: BATCH * STEPS]) for task in SMALL_TASKS]
    together = _our_step_s(model, data, 20)
    settings = PeftSettings(batch_size=BATCH)
    apart = [
        train_with_peft(folder, model, TASKS[task], rows, settings, STEPS).steady_step_cpu_s for task, rows in data
    ]
    return measured(
        "tuning, eight small tasks, 20 virtual tokens: time together / PEFT one by one",
        together / sum(apart),
        "x",
        target="<= 0.5",
        command=COMMAND,
    )


def _our_step_s(model: FrozenModel, data: Sequence[tuple[str, Rows]], tokens: int) -> float:
    """Mean CPU time of a step of all prompts together, the first two left out."""
    config = TuneConfig(
        num_virtual_tokens=tokens,
        steps=STEPS,
        warmup_steps=0,
        batch_size=BATCH,
        evaluate_every=STEPS,
        max_validation_rows=1,
    )
    jobs = [FitJob(task, TASKS[task], config, rows, rows[:2]) for task, rows in data]
    rates = {
        event.step: event.examples_per_s
        for event in fit(model, jobs, options=FitOptions(report_every=1), clock=time.process_time)
        if isinstance(event, StepReport)
    }
    return len(jobs) * BATCH * sum(1 / rate for step, rate in rates.items() if step > 2) / (len(rates) - 2)


def _by_turns(*arms: Callable[[], float]) -> list[float]:
    """The median of each arm, measured in turns, so that what else the machine does meets all of them."""
    taken: list[list[float]] = [[] for _ in arms]
    for _ in range(TURNS):
        for arm, found in zip(arms, taken, strict=True):
            found.append(arm())
    return [median(each) for each in taken]


if __name__ == "__main__":
    from pathlib import Path

    from infra.bench.measurement import keep, report

    torch.manual_seed(0)
    path = Path("build/bench-tuning.json")
    rows = measurements()
    keep(rows, path)
    report(rows, path)
