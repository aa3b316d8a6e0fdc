"""Accuracy against PEFT's prompt tuning, and the orderings of Lester et al. 2021, on real weights and text.

About two hours on two quiet cores. What is finished is kept in build/quality-cells, so it can be stopped and go on;
`python -m infra.bench.quality_table` shows what is there. Times are CPU seconds, so another load does not change them.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from infra.bench.measurement import Measurement, measured
from infra.bench.quality_runs import QualityRuns
from infra.bench.tuning_cells import Cells
from promptstore.tuning.config import TuneConfig

COMMAND = "make bench-quality"
# What was measured with other defaults is not mixed in.
CELLS = Path("build") / "quality-cells" / TuneConfig().digest[:12]
SEEDS = (0, 1, 2)
TASKS = ("trec6", "sst2", "ag_news", "boolq")
SEARCHED = ("trec6", "sst2")

Cell = dict[str, Any]


def measurements() -> list[Measurement]:
    """The rows of `make bench-quality`; computes the cells that are missing, the most telling ones first."""
    cells = compute(Cells(CELLS))
    return [*_against_peft(cells), _defaults(cells), *_orderings(cells["lester"])]


def compute(cells: Cells) -> dict[str, Cell]:
    """Every cell by name."""
    runs = QualityRuns()
    found: dict[str, Cell] = {}
    for task in TASKS[:-1]:
        found[f"{task}-ours"] = cells.get(f"{task}-ours", lambda t=task: runs.ours(t, SEEDS))
        for seed in SEEDS:
            found[f"{task}-peft-{seed}"] = cells.get(f"{task}-peft-{seed}", lambda t=task, s=seed: runs.peft(t, s))
        found[f"{task}-untuned"] = cells.get(f"{task}-untuned", lambda t=task: runs.untuned(t))
    for task in TASKS[:-1]:
        found[f"{task}-course"] = cells.get(f"{task}-course", lambda t=task: runs.course(t))
    for task in SEARCHED:
        found[f"{task}-search"] = cells.get(f"{task}-search", lambda t=task: runs.search(t))
    found["lester"] = cells.get("lester", runs.lester)
    last = TASKS[-1]
    found[f"{last}-ours"] = cells.get(f"{last}-ours", lambda: runs.ours(last, SEEDS))
    for seed in SEEDS:
        found[f"{last}-peft-{seed}"] = cells.get(f"{last}-peft-{seed}", lambda s=seed: runs.peft(last, s))
    found[f"{last}-untuned"] = cells.get(f"{last}-untuned", lambda: runs.untuned(last))
    found[f"{last}-course"] = cells.get(f"{last}-course", lambda: runs.course(last))
    return found


def time_to(course: Sequence[Sequence[float]], accuracy: float) -> float:
    """CPU seconds of fitting until the accuracy was reached; three times the whole fit, if it never was."""
    return next((at for at, value in course if value >= accuracy), 3 * max(at for at, _ in course))


def _against_peft(cells: dict[str, Cell]) -> list[Measurement]:
    rows, advantages, ratios = [], [], []
    for task in TASKS:
        ours = cells[f"{task}-ours"]["accuracy"]
        peft = [cells[f"{task}-peft-{seed}"] for seed in SEEDS]
        theirs = [cell["accuracy"] for cell in peft]
        advantages.append(mean(ours) - mean(theirs))
        ratios.append(time_to(cells[f"{task}-course"]["course"], mean(theirs)) / mean(cell["cpu_s"] for cell in peft))
        rows += [
            _row(f"{task}: untuned accuracy", cells[f"{task}-untuned"]["accuracy"]),
            _row(f"{task}: ours, mean of three seeds", mean(ours)),
            _row(f"{task}: ours, standard deviation", stdev(ours)),
            _row(f"{task}: PEFT, mean of three seeds", mean(theirs)),
            _row(f"{task}: PEFT, standard deviation", stdev(theirs)),
            _row(f"{task}: ours - PEFT", advantages[-1], ">= 0"),
        ]
    return [
        *rows,
        _row("ours - PEFT, mean of the tasks", mean(advantages), ">= 0.02"),
        _row("CPU time to PEFT's final accuracy / PEFT's, mean of the tasks", mean(ratios), "<= 0.3333"),
    ]


def _defaults(cells: dict[str, Cell]) -> Measurement:
    """Our default against the best of our own search, on the same budget."""
    gap = mean(cells[f"{task}-search"]["accuracy"] - cells[f"{task}-ours"]["accuracy"][0] for task in SEARCHED)
    return _row(f"best of our search - our default, mean of {' and '.join(SEARCHED)}", gap, "<= 0.01")


def _orderings(cell: Cell) -> list[Measurement]:
    """Lester et al. 2021, figure 3 and table 3; of the last step, without selection."""
    by = {name: mean(values) for name, values in cell["accuracy"].items()}
    return [
        *(_row(f"Lester's settings, {name}", value) for name, value in by.items()),
        _row("class labels - uniform", by["labels"] - by["uniform"], "> 0"),
        _row("sampled vocabulary - uniform", by["vocabulary"] - by["uniform"], "> 0"),
        _row("5 virtual tokens - 1", by["length 5"] - by["length 1"], "> 0"),
        _row("20 virtual tokens - 5", by["vocabulary"] - by["length 5"], "> 0"),
        _row("|100 virtual tokens - 20|", abs(by["length 100"] - by["vocabulary"]), "<= 0.03"),
        _row("ensemble of five - average member", cell["ensemble"] - cell["ensemble_average"], ">= 0"),
    ]


def _row(name: str, value: float, target: str = "") -> Measurement:
    unit = "x" if " / " in name else "accuracy"
    return measured(f"quality, {name}", value, unit, target=target, command=COMMAND)
