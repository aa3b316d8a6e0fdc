"""What a prompt must be better than: the bare model, and one that is told and shown what to do."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.job_plan import TaskPlan

# What stands beside a version's own metrics, by the note of the job that holds it.
BASELINES = ("untuned", "text_prompt")
# How many of a task's newest versions are looked at.
MOST_SEARCHED = 20


def known_baseline(name: str, plan: TaskPlan, model: FrozenModel, store: PromptStore) -> dict[str, float] | None:
    """The metrics of a baseline as an earlier version has them, if it was judged by the same model on the same data."""
    if plan.name not in store.refresh().tasks:
        return None
    for version in reversed(store.state.task(plan.name).versions[-MOST_SEARCHED:]):
        if version.is_expired:
            continue
        try:
            manifest = store.manifest(version.digest)
        except (NotFoundError, CorruptError):
            continue  # `promptstore verify` is for that
        is_of_same = (
            manifest.provenance.data_digest == plan.data_digest
            and manifest.fingerprint == model.fingerprint
            and _asked(manifest.task) == _asked(plan.task)
        )
        if is_of_same and (found := _with_prefix(f"{name}_", manifest.metrics)):
            return found
    return None


def _asked(task: TaskSpec) -> TaskSpec:
    """What the model is asked, and how it is judged: not how a prompt is fitted to it, nor where the data lies."""
    return replace(task, data=replace(task.data, train="", validation=""), tuning={}, placement="before")


def _with_prefix(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix(prefix): float(value) for name, value in metrics.items() if name.startswith(prefix)}
