"""The stored prompt that a new task should start from (SPoT, Vu et al. 2022)."""

import logging
from collections.abc import Iterator, Sequence

from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import PromptVersion, TaskState
from promptstore.core.task import TaskSpec
from promptstore.errors import NotFoundError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.nearest import rank_by_transfer
from promptstore.tuning.rows import Row

log = logging.getLogger(__name__)

# Each is tried on a few dozen rows: so many cost about as much as a few steps of a fit.
MOST_TRIED = 32


def nearest_stored(
    store: PromptStore, model: FrozenModel, task: TaskSpec, rows: Sequence[Row], *, num_virtual_tokens: int | None
) -> PromptRef:
    """Of one version of every other task, the one that serves `task` best as it is.

    A task takes part with its production version, or else its newest. rows: of the new task's training split.
    num_virtual_tokens: prompts of this length alone; `None` for any.

    Raises:
        NotFoundError: the store has no prompt of another task for this model, ensembles left aside.
    """
    found: dict[str, PromptVersion] = {}
    for version in _candidates(store, task.name):
        manifest = store.manifest(version.digest)
        payload = manifest.payload
        is_alike = manifest.task.placement == task.placement and (
            payload.ensemble is None and num_virtual_tokens in (None, payload.num_virtual_tokens)
        )
        if manifest.fingerprint.identity == model.fingerprint.identity and is_alike:
            found[str(version)] = version
        if len(found) == MOST_TRIED:
            break
    if not found:
        length = "" if num_virtual_tokens is None else f" with {num_virtual_tokens} virtual tokens"
        raise NotFoundError(
            f"task {task.name}: initialise = 'nearest' finds no prompt of another task{length} for "
            f"{model.fingerprint.name} in the store; use 'vocabulary' until there is one"
        )
    prompts = {name: store.pull(_ref(each), for_model=model.fingerprint).prompt for name, each in found.items()}
    ranked = rank_by_transfer(model, task, rows, prompts)
    log.info("%s starts from %s, the nearest of %d stored prompts", task.name, ranked[0].name, len(ranked))
    return _ref(found[ranked[0].name])


def _candidates(store: PromptStore, task: str) -> Iterator[PromptVersion]:
    """One version of every other task, those published last first."""
    chosen = [_version(each) for name, each in store.state.tasks.items() if name != task]
    yield from sorted((each for each in chosen if each is not None), key=lambda each: -each.commit)


def _version(task: TaskState) -> PromptVersion | None:
    if DEFAULT_ALIAS in task.aliases:
        return task.version(task.aliases[DEFAULT_ALIAS])
    return next((each for each in reversed(task.versions) if not each.is_expired), None)


def _ref(version: PromptVersion) -> PromptRef:
    return PromptRef(version.task, digest=version.digest)
