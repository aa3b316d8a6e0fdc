"""Reading everything and believing nothing: is every name good, every digest right, the chain unbroken?"""

from collections.abc import Callable
from dataclasses import dataclass

from promptstore.core.state import StoreState
from promptstore.errors import CorruptError, NotFoundError, UntrustedError
from promptstore.store.following import read_commit
from promptstore.store.header import read_header
from promptstore.store.layout import (
    CLOCK,
    COMMITS,
    HEADER_KEY,
    HINT_KEY,
    QUARANTINE,
    BlobKey,
    checkpoint_number,
    commit_number,
)
from promptstore.store.ledger import random_id
from promptstore.store.memory import HeadMemory, Seen
from promptstore.store.objects import ObjectInfo, ObjectStore
from promptstore.store.trust import TrustPolicy, accept_all
from promptstore.store.verify_blobs import check_blobs
from promptstore.store.verify_log import LogCheck
from promptstore.store.verify_problem import Problem


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. state: the fold of the log as far as it is good; `None` if it is not even begun.

    orphans: payloads and manifests that no version needs; `gc` deletes them in time.
    unknown: objects that are not part of the format; nothing here touches them.
    """

    state: StoreState | None
    objects: int
    size_bytes: int
    problems: tuple[Problem, ...]
    orphans: tuple[ObjectInfo, ...]
    unknown: tuple[ObjectInfo, ...]

    @property
    def is_clean(self) -> bool:
        return not self.problems


def verify(objects: ObjectStore, *, trust: TrustPolicy | None = None, memory: HeadMemory | None = None) -> Verification:
    """Read every object of a store and fold its whole log. Safe while others publish and collect garbage.

    memory: what this machine has seen of the log; one that ends earlier, or was rewritten, has a problem.

    Raises:
        StoreUnavailableError: the store cannot be read. What is wrong *in* it is reported, not raised.
    """
    seen = None if memory is None else _remembered(objects, memory)
    # Keys come in ascending order: commits before the manifests and payloads that they name, which existed earlier.
    listed = {info.key: info for info in objects.list("")}
    problems: list[Problem] = []
    state = LogCheck(objects, listed, trust.require if trust else accept_all, problems).run()
    orphans = check_blobs(objects, listed, state, problems)
    if memory is not None and seen is not None and state is not None:
        try:
            memory.check(objects.url, state, seen, lambda number: read_commit(objects, number).digest)
        except UntrustedError as error:
            problems.append(Problem(COMMITS, str(error)))
    return Verification(
        state=state,
        objects=len(listed),
        size_bytes=sum(info.size_bytes for info in listed.values()),
        problems=tuple(problems),
        orphans=tuple(orphans),
        unknown=tuple(info for info in listed.values() if not _is_known(info.key)),
    )


def _remembered(objects: ObjectStore, memory: HeadMemory) -> Seen | None:
    """`None` if the store does not say which it is, which the log's own check reports."""
    try:
        header = read_header(objects)
    except (CorruptError, NotFoundError):
        return None
    return memory.look(objects.url, header.id)


def quarantine(objects: ObjectStore, found: Verification, *, new_id: Callable[[], str] = random_id) -> list[str]:
    """Move damaged payloads, manifests, checkpoints and hints to `quarantine/`; their new keys. Deletes nothing else.

    The log itself is never touched: bring a damaged commit back from a copy. A quarantined payload or manifest comes
    back by publishing the same again, or by copying the store from a mirror (`promptstore copy`).
    """
    folder = f"{QUARANTINE}{new_id()}/"
    moved = []
    for key in dict.fromkeys(problem.key for problem in found.problems if problem.is_movable):
        objects.put(folder + key, objects.get(key))
        objects.delete(key)
        moved.append(folder + key)
    return moved


def _is_known(key: str) -> bool:
    return (
        key in {HEADER_KEY, HINT_KEY}
        or key.startswith((CLOCK, QUARANTINE))
        or BlobKey.parse(key) is not None
        or commit_number(key) is not None
        or checkpoint_number(key) is not None
    )
