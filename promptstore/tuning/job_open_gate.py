"""From names and settings to a gate at work. Imports no torch: the figures may all be known."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from promptstore.core.ref import DEFAULT_ALIAS
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.source import open_model
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.data import load_rows
from promptstore.tuning.evaluation_memory import open_evaluation_memory
from promptstore.tuning.gate import GatePolicy
from promptstore.tuning.job_gate import (
    GateOutcome,
    gate_fields,
    gate_version,
    last_verdict,
    require_one_base,
    verdict_before,
)
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.judge import RememberingJudge
from promptstore.tuning.settings_device import settings_device
from promptstore.tuning.task_file import read_task

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel

DEFAULT_POLICY = GatePolicy()


def run_gate_job(
    ref: str,
    *,
    settings: Settings,
    store: PromptStore,
    alias: str = DEFAULT_ALIAS,
    task_file: str | None = None,
    policy: GatePolicy = DEFAULT_POLICY,
    actor: str | None = None,
) -> GateOutcome:
    """Judge a version on the held-out rows of its task, unless the log says already that it passes. Raises as
    `gate_version` and `require_one_base`.

    What this machine found out about a version before, as the job that tuned it did, it does not compute again, except
    where the last verdict was a refusal.

    task_file: names the data, or is a folder with the file that does; without it the version's own manifest must name a
    place that can be read from here.
    """
    store.refresh()
    require_one_base(store, ref, alias)
    fields, task = gate_fields(store, ref, alias, policy.slices)
    fitted_on = {*task.template_fields, task.target_field}
    if task_file is not None:
        task = _task_in(Path(task_file), task)
    _, held_out = split_validation(load_rows(task.data.validation, fields=fields, settings=settings), by=fitted_on)
    memory = open_evaluation_memory(settings)
    known = verdict_before(store, ref, alias, data_digest=held_out.digest, policy=policy, weights=memory.weights)
    if known is not None:
        return known
    said = last_verdict(store.resolve(ref))
    was_refused = said is not None and said.get("verdict") != "pass"
    with ExitStack() as held:
        judge = RememberingJudge(memory, partial(_open_held, held, settings, ref), recalls=not was_refused)
        outcome = gate_version(store, judge, ref, held_out, alias=alias, policy=policy, actor=actor)
        del judge  # nothing refers to the model any more when the device is given back
    return outcome


def _open_held(held: ExitStack, settings: Settings, ref: str) -> "FrozenModel":
    held.enter_context(settings_device(settings, f"gate of {ref}"))
    return open_model(settings.model, cache_dir=settings.cache_dir, device=settings.device, dtype=settings.dtype)


def _task_in(place: Path, wanted: TaskSpec) -> TaskSpec:
    """The task in a file, which must be `wanted`, or of the file in a folder that is."""
    if place.is_dir():
        for file in sorted(place.glob("*.toml")):
            if (given := read_task(file)).name == wanted.name:
                return given
        raise InvalidInputError(f"folder {place} holds no task file of {wanted.name}")
    given = read_task(place)
    if given.name != wanted.name:
        raise InvalidInputError(f"the task file is of {given.name}, the version is of {wanted.name}")
    return given
