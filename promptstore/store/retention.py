"""Which versions a store need not keep for ever."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from promptstore.core.ref import PromptRef
from promptstore.core.state import StoreState, TaskState
from promptstore.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """keep_newest: so many versions of each task stay. keep_for: and all younger than this. keep_previous: and those
    that each alias pointed at last, so that it can be rolled back so many times.
    """

    keep_newest: int = 10
    keep_for: timedelta = timedelta(days=30)
    keep_previous: int = 3

    def __post_init__(self) -> None:
        if self.keep_newest < 1 or self.keep_for < timedelta(0) or self.keep_previous < 0:
            raise InvalidInputError(
                f"retention: at least the newest version stays, and times are not negative: {self}; "
                "to take a task away, delete its aliases and expire its versions by name"
            )


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """expire: what may go. refused: what would go by age and number, but an alias points at it: (version, aliases)."""

    expire: tuple[PromptRef, ...]
    refused: tuple[tuple[PromptRef, tuple[str, ...]], ...]


def plan_retention(state: StoreState, policy: RetentionPolicy, *, now: datetime) -> RetentionPlan:
    """What `policy` lets go of, task by task; nothing is changed."""
    expire: list[PromptRef] = []
    refused: list[tuple[PromptRef, tuple[str, ...]]] = []
    for task in state.tasks.values():
        held = _held(task)
        previous = _previous(task, policy.keep_previous)
        kept = [each for each in task.versions if not each.is_expired]
        for version in kept[: -policy.keep_newest]:
            if now - datetime.fromisoformat(version.at) <= policy.keep_for or version.number in previous:
                continue
            ref = PromptRef(task.name, number=version.number)
            if version.number in held:
                refused.append((ref, held[version.number]))
            else:
                expire.append(ref)
    return RetentionPlan(tuple(expire), tuple(refused))


def _held(task: TaskState) -> dict[int, tuple[str, ...]]:
    numbers = set(task.aliases.values())
    return {number: tuple(sorted(alias for alias, at in task.aliases.items() if at == number)) for number in numbers}


def _previous(task: TaskState, count: int) -> set[int]:
    """The versions that each alias left last; not what it points at now."""
    kept: set[int] = set()
    for alias, current in task.aliases.items():
        left = [move.before for move in reversed(task.moves) if move.alias == alias and move.before is not None]
        distinct = list(dict.fromkeys(number for number in left if number != current))
        kept.update(distinct[:count])
    return kept
