"""Old versions may go; what is in use, or was just before, never does."""

from datetime import UTC, datetime, timedelta

import pytest

from promptstore.core.ref import PromptRef
from promptstore.core.state import AliasMove, PromptVersion, StoreState, TaskState
from promptstore.errors import InvalidInputError
from promptstore.store.retention import RetentionPolicy, plan_retention

NOW = datetime(2026, 11, 23, tzinfo=UTC)
STRICT = RetentionPolicy(keep_newest=1, keep_for=timedelta(0), keep_previous=0)


def state(
    *, aliases: dict[str, int], moves: list[tuple[str, int | None, int]], expired: frozenset[int] = frozenset()
) -> StoreState:
    """A task with versions 1 to 6, one published each day, the last one today."""
    versions = tuple(
        PromptVersion(
            task="sst2",
            number=number,
            digest=f"{number}" * 64,
            payload="p" * 64,
            commit=number,
            at=(NOW - timedelta(days=6 - number)).isoformat(),
            actor="a",
            expired_in=9 if number in expired else None,
        )
        for number in range(1, 7)
    )
    told = tuple(
        AliasMove("sst2", alias, before, after, 9, NOW.isoformat(), "a", "", forced=False)
        for alias, before, after in moves
    )
    return StoreState("id", 9, "d" * 64, tasks={"sst2": TaskState("sst2", versions, aliases, told)})


def numbers(found: tuple[PromptRef, ...]) -> list[int | None]:
    return [ref.number for ref in found]


def test_number_and_age_both_keep() -> None:
    now = state(aliases={}, moves=[])
    assert numbers(plan_retention(now, STRICT, now=NOW).expire) == [1, 2, 3, 4, 5]
    by_number = RetentionPolicy(keep_newest=4, keep_for=timedelta(0), keep_previous=0)
    assert numbers(plan_retention(now, by_number, now=NOW).expire) == [1, 2]
    by_age = RetentionPolicy(keep_newest=1, keep_for=timedelta(days=3), keep_previous=0)
    assert numbers(plan_retention(now, by_age, now=NOW).expire) == [1, 2]


def test_what_an_alias_points_at_is_refused_and_said() -> None:
    plan = plan_retention(state(aliases={"production": 2, "shadow": 2}, moves=[]), STRICT, now=NOW)
    assert numbers(plan.expire) == [1, 3, 4, 5]
    assert plan.refused == ((PromptRef("sst2", number=2), ("production", "shadow")),)


def test_the_way_back_stays_open() -> None:
    moves = [("production", None, 1), ("production", 1, 2), ("production", 2, 4), ("production", 4, 5)]
    now = state(aliases={"production": 5}, moves=moves)
    policy = RetentionPolicy(keep_newest=1, keep_for=timedelta(0), keep_previous=2)
    assert numbers(plan_retention(now, policy, now=NOW).expire) == [1, 3]


def test_expired_versions_do_not_count_as_newest() -> None:
    now = state(aliases={}, moves=[], expired=frozenset({6}))
    assert numbers(plan_retention(now, STRICT, now=NOW).expire) == [1, 2, 3, 4]


def test_a_policy_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least the newest version stays"):
        RetentionPolicy(keep_newest=0)
