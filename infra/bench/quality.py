"""Accuracy against PEFT's prompt tuning, and the orderings of Lester et al. 2021, on real weights and text.

Hours on two cores, minutes on a GPU. What is finished is kept in build/quality-cells, apart for every kind of device
and dtype, so it can be stopped and go on; `python -m infra.bench.quality_table` shows what is there, and
`python -m infra.bench.quality CELL…` computes the named cells alone.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from infra.bench.measurement import Measurement, measured
from infra.bench.quality_runs import BUDGETS, LESTER_SETTINGS, LESTER_TASK, QualityRuns
from infra.bench.tuning_cells import KeptCell, folder_of_device
from promptstore.tuning.config import TuneConfig

COMMAND = "make bench-quality"
CELLS = Path("build") / "quality-cells"
SEEDS = (0, 1, 2)
ENSEMBLE = "vocabulary"
ENSEMBLE_SEEDS = (0, 1, 2, 3, 4)
TASKS = ("trec6", "sst2", "ag_news", "boolq")
SEARCHED = ("trec6", "sst2")

Cell = dict[str, Any]


def main() -> None:
    """Compute the cells that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="+", metavar="CELL", choices=[each.name for each in planned()])
    compute(parser.parse_args().cells)


def measurements() -> list[Measurement]:
    """The rows of `make bench-quality`; computes the cells that are missing, the most telling ones first."""
    cells = compute([each.name for each in planned()])
    return [*_against_peft(cells), _defaults(cells), *_orderings(cells)]


def compute(names: Sequence[str]) -> dict[str, Cell]:
    """The cells of these names."""
    runs = QualityRuns()
    return {each.name: each.cell.get(partial(each.compute, runs)) for each in planned() if each.name in names}


def finished() -> dict[str, Cell]:
    """The cells that were computed before, by name."""
    return {each.name: content for each in planned() if (content := each.cell.kept()) is not None}


@dataclass(frozen=True, slots=True)
class Planned:
    name: str
    cell: KeptCell
    compute: Callable[[QualityRuns], Cell]


def planned() -> Iterator[Planned]:
    """Every cell of the table, in the order to compute them in."""
    *first, last = TASKS
    for task in first:
        yield from _both(task)
    for task in first:
        yield _ours(f"{task}-course", task, lambda runs, task=task: runs.course(task))
    for task in SEARCHED:
        yield _ours(f"{task}-search", task, lambda runs, task=task: runs.search(task))
    for setting in LESTER_SETTINGS:
        yield _lester(setting)
    yield from _both(last)
    yield _ours(f"{last}-course", last, lambda runs: runs.course(last))


def _both(task: str) -> Iterator[Planned]:
    yield _ours(f"{task}-ours", task, lambda runs: runs.ours(task, SEEDS))
    for seed in SEEDS:
        yield _peers(f"{task}-peft-{seed}", task, lambda runs, seed=seed: runs.peft(task, seed))
    yield _peers(f"{task}-untuned", task, lambda runs: runs.untuned(task))


def _lester(setting: str) -> Planned:
    seeds = ENSEMBLE_SEEDS if setting == ENSEMBLE else SEEDS
    return _ours(f"lester-{setting}", LESTER_TASK, lambda runs: runs.lester(setting, seeds))


def _ours(name: str, task: str, compute: Callable[[QualityRuns], Cell]) -> Planned:
    """What was measured with other defaults is not mixed in."""
    return Planned(name, _cell(TuneConfig().digest[:12], task, name), compute)


def _peers(name: str, task: str, compute: Callable[[QualityRuns], Cell]) -> Planned:
    """Our defaults do not reach it."""
    return Planned(name, _cell("peers", task, name), compute)


def _cell(settings: str, task: str, name: str) -> KeptCell:
    return KeptCell(CELLS / folder_of_device() / settings / BUDGETS[task].name / f"{name}.json")


def time_to(course: Sequence[Sequence[float]], accuracy: float) -> float:
    """Seconds of fitting until the accuracy was reached; three times the whole fit, if it never was."""
    return next((at for at, value in course if value >= accuracy), 3 * max(at for at, _ in course))


def standard_errors(first: Sequence[float], second: Sequence[float]) -> float:
    """How far apart two means over seeds are, in standard errors of their difference: within 2 they are alike.

    >>> round(standard_errors([0.9, 0.8], [0.7, 0.8]), 3)
    1.414
    """
    error = sum(stdev(values) ** 2 / len(values) for values in (first, second)) ** 0.5
    return (mean(first) - mean(second)) / error


def _against_peft(cells: dict[str, Cell]) -> list[Measurement]:
    rows, advantages, ratios = [], [], []
    for task in TASKS:
        ours = cells[f"{task}-ours"]["accuracy"]
        peft = [cells[f"{task}-peft-{seed}"] for seed in SEEDS]
        theirs = [cell["accuracy"] for cell in peft]
        advantages.append(mean(ours) - mean(theirs))
        ratios.append(time_to(cells[f"{task}-course"]["course"], mean(theirs)) / mean(cell["seconds"] for cell in peft))
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
        _row("time to PEFT's final accuracy / PEFT's, mean of the tasks", mean(ratios), "<= 0.3333"),
    ]


def _defaults(cells: dict[str, Cell]) -> Measurement:
    """Our default against the best of our own search, on the same budget."""
    gap = mean(cells[f"{task}-search"]["accuracy"] - cells[f"{task}-ours"]["accuracy"][0] for task in SEARCHED)
    return _row(f"best of our search - our default, mean of {' and '.join(SEARCHED)}", gap, "<= 0.01")


def lester_accuracies(cells: dict[str, Cell]) -> dict[str, list[float]]:
    """By setting, of the last step. Settings that are not computed yet are left out."""
    return {setting: cells[name]["accuracy"] for setting in LESTER_SETTINGS if (name := f"lester-{setting}") in cells}


def _orderings(cells: dict[str, Cell]) -> list[Measurement]:
    """Lester et al. 2021, figure 3 and table 3; of the last step, without selection."""
    of = lester_accuracies(cells)
    by = {name: mean(values) for name, values in of.items()}
    longer = standard_errors(of["length-100"], of["vocabulary"])
    return [
        *(_row(f"Lester's settings, {name}", value) for name, value in by.items()),
        _row("class labels - uniform", by["labels"] - by["uniform"], "> 0"),
        _row("sampled vocabulary - uniform", by["vocabulary"] - by["uniform"], "> 0"),
        _row("5 virtual tokens - 1", by["length-5"] - by["length-1"], "> 0"),
        _row("20 virtual tokens - 5", by["vocabulary"] - by["length-5"], "> 0"),
        _row("100 virtual tokens - 20", by["length-100"] - by["vocabulary"]),
        _row("100 virtual tokens - 20 / standard error", abs(longer), "<= 2"),
        _row("ensemble of five - average member", cells[f"lester-{ENSEMBLE}"]["ensemble"] - by[ENSEMBLE], ">= 0"),
    ]


def _row(name: str, value: float, target: str = "") -> Measurement:
    unit = "x" if " / " in name else "accuracy"
    return measured(f"quality, {name}", value, unit, target=target, command=COMMAND)


if __name__ == "__main__":
    main()
