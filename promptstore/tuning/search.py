"""Successive halving over settings: all candidates begin in the same passes, and at each rung the worse ones leave.

Li et al. 2018 (Hyperband) in its simplest form. Survivors go on where they were, optimiser and all, by way of a
checkpoint, so the search costs the winner's run and the beginnings of the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import CheckpointSaved, FitEvent, FitFinished, ValidationReport
from promptstore.tuning.fit import DEFAULT_OPTIONS, FitOptions, fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.metrics import LOWER_IS_BETTER

DEFAULT_GRID: Mapping[str, Sequence[Any]] = {
    "learning_rate": (0.03, 0.1, 0.3),
    "initialise": ("labels", "examples"),
}


@dataclass(frozen=True, slots=True)
class RungReached:
    """The candidates were compared after `step` steps; values are of the validation metric, best first in `kept`."""

    step: int
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    values: Mapping[str, float]


SearchEvent = FitEvent | RungReached


@dataclass(slots=True)
class _MemorySlot:
    data: bytes | None = None

    def load(self) -> bytes | None:
        return self.data

    def save(self, data: bytes) -> None:
        self.data = data


def candidates(job: FitJob, grid: Mapping[str, Sequence[Any]] = DEFAULT_GRID) -> list[FitJob]:
    """`job` with every combination of the grid's settings; names say what differs.

    Raises:
        InvalidInputError: a name in the grid is no setting, or a value is out of range.
    """
    found = []
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = ",".join(f"{setting}={value}" for setting, value in chosen.items())
        config = TuneConfig.from_mapping({**job.config.to_json(), **chosen})
        found.append(replace(job, name=f"{job.name}[{name}]", config=config))
    return found


def search(
    model: FrozenModel,
    jobs: Sequence[FitJob],
    *,
    rungs: Sequence[float] = (0.25, 0.5),
    keep: float = 1 / 3,
    options: FitOptions = DEFAULT_OPTIONS,
) -> Iterator[SearchEvent]:
    """Fits candidates of one task, dropping all but the share `keep` at each rung; the survivors are fitted to the end.

    jobs: candidates with equal `steps`. rungs: shares of the steps after which to compare; each is moved to the next
    validation. The winner is the finished job with the best value.

    Raises:
        InvalidInputError: candidates of different steps, and what `fit` raises.
    """
    config = jobs[0].config
    if any((job.config.steps, job.config.evaluate_every) != (config.steps, config.evaluate_every) for job in jobs):
        raise InvalidInputError("candidates of a search need equal steps and evaluate_every, to be compared alike")
    slot = _MemorySlot()
    options = replace(options, save_every_s=0.0, max_active=max(options.max_active, len(jobs)))
    left = list(jobs)
    for rung in rungs:
        step = ceil(rung * config.steps / config.evaluate_every) * config.evaluate_every
        if step >= config.steps or len(left) == 1:
            break
        looks: dict[str, ValidationReport] = {}
        for event in fit(model, left, options=options, checkpoint=slot):
            yield event
            if isinstance(event, ValidationReport):
                looks[event.job] = event
            elif isinstance(event, CheckpointSaved) and min(event.steps.values(), default=step) >= step:
                break
        ranked = sorted(looks.values(), key=_rank)
        kept = [look.job for look in ranked[: max(1, ceil(keep * len(left)))]]
        yield RungReached(
            step,
            tuple(kept),
            tuple(job.name for job in left if job.name not in kept),
            {look.job: look.value for look in ranked},
        )
        left = [job for job in left if job.name in kept]
    yield from fit(model, left, options=options, checkpoint=slot)


def winner(finished: Sequence[FitFinished]) -> FitFinished:
    """The finished prompt with the best validation."""
    return min(finished, key=lambda event: _signed(event.result.metric, event.result.value))


def _rank(look: ValidationReport) -> tuple[float, float]:
    return (_signed(look.metric, look.value), look.loss)


def _signed(metric: str, value: float) -> float:
    return value if metric in LOWER_IS_BETTER else -value
