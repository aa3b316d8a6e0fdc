"""The quality table of the cells that are finished, as Markdown: `python -m infra.bench.quality_table`."""

from collections.abc import Sequence
from statistics import mean, stdev

from infra.bench.quality import ENSEMBLE, SEEDS, TASKS, Cell, finished, lester_accuracies, time_to


def main() -> None:
    cells = finished()
    print("\n".join([*against_peft(cells), "", *lester(cells)]))


def against_peft(cells: dict[str, Cell]) -> list[str]:
    """A row for each task, a dash where nothing is measured yet."""
    lines = [
        "| task | untuned | PEFT | ours | ours - PEFT | best of a search | time to PEFT's accuracy / PEFT's |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        peft = [cells[name] for seed in SEEDS if (name := f"{task}-peft-{seed}") in cells]
        theirs = [cell["accuracy"] for cell in peft]
        ours = cells.get(f"{task}-ours", {}).get("accuracy", [])
        advantage = f"{mean(ours) - mean(theirs):+.3f}" if ours and theirs else "-"
        ratio = "-"
        if theirs and (course := cells.get(f"{task}-course")):
            ratio = f"{time_to(course['course'], mean(theirs)) / mean(cell['seconds'] for cell in peft):.2f}"
        untuned, found = (_one(cells.get(f"{task}-{name}")) for name in ("untuned", "search"))
        lines.append(f"| {task} | {untuned} | {spread(theirs)} | {spread(ours)} | {advantage} | {found} | {ratio} |")
    return lines


def lester(cells: dict[str, Cell]) -> list[str]:
    """Initialisers, lengths and the ensemble, at the last step."""
    lines = ["| setting | accuracy |", "|---|---|"]
    lines += [f"| {name} | {spread(values)} |" for name, values in lester_accuracies(cells).items()]
    if (members := cells.get(f"lester-{ENSEMBLE}")) is not None:
        lines += [f"| {name.replace('_', ', ')} | {members[name]:.3f} |" for name in ("ensemble", "ensemble_best")]
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean, deviation and how many.

    >>> spread([0.5, 0.7])
    '0.600 ± 0.141 (2)'
    """
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation} ({len(values)})"


def _one(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell['accuracy']:.3f}"


if __name__ == "__main__":
    main()
