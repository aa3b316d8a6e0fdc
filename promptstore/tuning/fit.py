"""The fit: any number of prompts on one frozen model, in one loop."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.compiled import choose_compiled, compiled_parts
from promptstore.tuning.crew import Crew
from promptstore.tuning.events import FitEvent
from promptstore.tuning.fit_checkpoint import CheckpointSlot
from promptstore.tuning.fit_job import FitJob, prepare
from promptstore.tuning.fused import may_fuse
from promptstore.tuning.gradient import backward
from promptstore.tuning.packed import choose_passes
from promptstore.tuning.passes import Passes
from promptstore.tuning.recompute import recomputed_layers
from promptstore.tuning.reporting import Meter, memory_notice, step_reports, validation_reports
from promptstore.tuning.token_budget import TokenBudget


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a fit uses its machine; nothing here changes what comes out, beyond rounding.

    max_active: prompts fitted at a time; the others wait and join as places fall free. tokens_per_pass: positions
    computed at a time, `None` to choose by the device. report_every: steps between reports, each of which waits for the
    device. save_every_s: seconds between checkpoints. recompute_activations: keep less for the backward pass, where one
    row's activations alone fill the device. compile_layers: `None` for long fits on a GPU only; see
    `promptstore.tuning.compiled`.
    """

    max_active: int = 64
    tokens_per_pass: int | None = None
    report_every: int = 10
    save_every_s: float = 20.0
    recompute_activations: bool = False
    compile_layers: bool | None = None

    def __post_init__(self) -> None:
        if self.max_active < 1 or self.report_every < 1 or self.save_every_s < 0 or (self.tokens_per_pass or 1) < 1:
            raise InvalidInputError(f"fit options: counts are at least 1 and seconds at least 0: {self}")


DEFAULT_OPTIONS = FitOptions()


def fit(
    model: FrozenModel,
    jobs: Sequence[FitJob],
    *,
    options: FitOptions = DEFAULT_OPTIONS,
    checkpoint: CheckpointSlot | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[FitEvent]:
    """Fits every job's prompt and says what happens; each ends with a `FitFinished`.

    What a prompt becomes does not depend on the others. A prompt whose loss is no number stops, the others go on. With
    a `checkpoint`, a fit that was killed goes on where it was saved: later steps are reported again, with the same
    figures, and prompts that had finished are reported as finished. Bad input is refused before the first event.

    Called by every process of a process group (`torchrun`), each with the model on its own device, the rows of each
    step are shared out, and every process hears the same events; the first one alone writes the checkpoint.

    Raises:
        InvalidInputError: jobs, rows or settings that cannot be fitted; a checkpoint of another fit; while it runs, a
            single row that does not fit the device's memory.
        IncompatibleModelError: a warm start of another base model.
        CorruptError: the checkpoint is damaged; delete it to begin again.
    """
    crew = Crew(
        model,
        prepare(model, jobs),
        max_active=options.max_active,
        checkpoint=checkpoint,
        save_every_s=options.save_every_s,
    )
    budget = TokenBudget.of(model) if options.tokens_per_pass is None else TokenBudget(options.tokens_per_pass)
    return _compiled(model, crew, budget, Meter(model, clock), options)


def _compiled(
    model: FrozenModel, crew: Crew, budget: TokenBudget, meter: Meter, options: FitOptions
) -> Iterator[FitEvent]:
    rows = sum(each.job.config.steps * each.job.config.batch_size for each in crew.waiting)
    is_on = choose_compiled(model, asked=options.compile_layers, rows=rows)
    passes = choose_passes(model, is_fused=is_on and not options.recompute_activations and may_fuse(model))
    with compiled_parts(model, is_on=is_on and not passes.is_compiled):
        yield from _loop(model, passes, crew, budget, meter, options)


def _loop(
    model: FrozenModel, passes: Passes, crew: Crew, budget: TokenBudget, meter: Meter, options: FitOptions
) -> Iterator[FitEvent]:
    while crew.waiting or crew.active:
        yield from crew.admit()
        if not crew.active:
            continue
        meter.start()
        with recomputed_layers(model, is_on=options.recompute_activations):
            step = backward(model, passes, budget, crew.active)
        for fitting, loss in zip(crew.active, step.losses.unbind(), strict=True):
            fitting.update(loss)
        meter.count(step)
        if not any(fitting.is_report_due(options.report_every) for fitting in crew.active):
            continue
        yield from memory_notice(budget)
        yield from step_reports(crew.active, meter)  # the only wait for the device
        yield from validation_reports(model, passes, budget, crew.active)
        yield from crew.retire(meter.now())
