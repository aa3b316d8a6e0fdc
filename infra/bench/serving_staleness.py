"""How late a replica is: from what a writer did, what the replica said of itself, and what its answers name."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from infra.bench.serving_load import Asked
from infra.bench.serving_writer import Promoted


@dataclass(frozen=True, slots=True)
class Look:
    """What a replica served at a moment by the system's monotonic clock: the store as of `commit`."""

    at_s: float
    commit: int


def seen_after(promoted: Sequence[Promoted], looks: Sequence[Look]) -> list[float]:
    """Seconds from the end of each promotion until the replica was first seen to serve it, or a later one.

    Raises:
        RuntimeError: it never served one of them.
    """
    commits = [look.commit for look in looks]
    if commits != sorted(commits):
        raise RuntimeError("the replica went back to an earlier commit")
    if promoted and commits[-1] < promoted[-1].commit:
        raise RuntimeError(f"the replica stopped at commit {commits[-1]} of {promoted[-1].commit}")
    return [max(0.0, looks[bisect_left(commits, each.commit)].at_s - each.done_s) for each in promoted]


def replaced_for(asked: Sequence[Asked], promoted: Sequence[Promoted]) -> list[float]:
    """Seconds that the version of each answer had been replaced when it was asked for; 0 while it was in place.

    Versions may come round again: an answer is held to the last promotion of its version that had begun before it came.
    """
    begun = {number: [at for at, each in enumerate(promoted) if each.number == number] for number in _numbers(promoted)}
    waits = []
    for each in asked:
        turns = begun.get(_number(each), [])
        earlier = turns[: bisect_left(turns, each.done_s, key=lambda at: promoted[at].begun_s)]
        # What was in place before the first promotion was replaced by it.
        following = earlier[-1] + 1 if earlier else 0
        is_last = following >= len(promoted)
        waits.append(0.0 if is_last else max(0.0, each.sent_s - promoted[following].done_s))
    return waits


def _numbers(promoted: Sequence[Promoted]) -> set[int]:
    return {each.number for each in promoted}


def _number(asked: Asked) -> int:
    return int(asked.version.rpartition(":")[2])
