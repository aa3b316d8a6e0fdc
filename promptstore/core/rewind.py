"""What a state says of its own past."""

from collections.abc import Mapping
from dataclasses import replace

from promptstore.core.state import PromptVersion, StoreState, TaskState


def tasks_at(state: StoreState, number: int) -> Mapping[str, TaskState]:
    """The tasks as they were after commit `number`, from what `state`, a later one, remembers of every commit."""
    earlier = {name: _task_at(task, number) for name, task in state.tasks.items()}
    return {name: task for name, task in earlier.items() if task.versions}


def _task_at(task: TaskState, number: int) -> TaskState:
    moves = tuple(move for move in task.moves if move.commit <= number)
    aliases = {move.alias: move.after for move in moves}
    return TaskState(
        task.name,
        tuple(_version_at(version, number) for version in task.versions if version.commit <= number),
        {alias: after for alias, after in aliases.items() if after is not None},
        moves,
    )


def _version_at(version: PromptVersion, number: int) -> PromptVersion:
    is_expired = version.expired_in is not None and version.expired_in <= number
    return replace(
        version,
        attestations=tuple(each for each in version.attestations if each.commit <= number),
        expired_in=version.expired_in if is_expired else None,
    )
