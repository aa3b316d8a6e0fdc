"""One thing that is wrong with a store."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """key: the object it is about. is_movable: whether the object can be put aside without hurting the log."""

    key: str
    message: str
    is_movable: bool = False
