"""What a store held at a moment in the past, from its log alone."""

from datetime import datetime

from promptstore.core.header import StoreHeader
from promptstore.core.instant import format_instant
from promptstore.core.rewind import tasks_at
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError
from promptstore.store.checkpoints import load_checkpoint
from promptstore.store.following import Accept, follow, read_commit
from promptstore.store.objects import ObjectStore


def state_at(
    objects: ObjectStore, header: StoreHeader, head: StoreState, moment: datetime, accept: Accept
) -> StoreState:
    """The state after the last commit dated `moment` or before, by the clocks of the log's writers.

    Commits are dated in ascending order, so about log2(head.number) reads find that commit.

    Raises:
        CorruptError: the log up to there is not the one that `head` came of: somebody wrote it anew.
    """
    number = _last_commit(objects, head, format_instant(moment))
    if number == head.number:
        return head
    state = load_checkpoint(objects, header, accept, at_most=number)
    for later, _ in follow(objects, state, accept, stop=number + 1):
        state = later
    if state.tasks != tasks_at(head, state.number):
        raise CorruptError(
            f"the log up to commit {state.number} does not say what commit {head.number}, which was read before, "
            "remembers of it; `promptstore verify` finds the commit that was rewritten"
        )
    return state


def _last_commit(objects: ObjectStore, head: StoreState, at: str) -> int:
    """Number of the last commit dated `at` or before; 0 if there is none."""
    if head.number == 0 or head.at <= at:
        return head.number
    before, after = 0, head.number
    while after - before > 1:
        middle = (before + after) // 2
        if read_commit(objects, middle).at <= at:
            before = middle
        else:
            after = middle
    return before
