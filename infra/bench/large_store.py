"""A store like that of a large team after years: 10,000 tasks, 100,000 gated versions, 10,000 nightly commits."""

from collections.abc import Iterator
from pathlib import Path

from promptstore.core.commit import CHECKPOINT_EVERY, Commit, names_checkpoint
from promptstore.core.digest import sha256_hex
from promptstore.core.fold import fold
from promptstore.core.header import StoreHeader
from promptstore.core.operation import Attest, MoveAlias, Operation, Publish
from promptstore.objects.local import LocalObjectStore
from promptstore.store.layout import commit_key
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.store_samples import sample_prompt, sample_task

TASKS = 10_000
VERSIONS_PER_TASK = 10
VERSIONS_PER_COMMIT = 10
COMMITS = TASKS * VERSIONS_PER_TASK // VERSIONS_PER_COMMIT
TAIL = CHECKPOINT_EVERY
NEWEST = VERSIONS_PER_TASK + 1
_UNREAD_DIGEST = "0" * 64


def task_name(index: int) -> str:
    return f"task-{index:05}"


def build_large_store(folder: Path) -> None:
    """A log whose newest checkpoint holds all of it, and the longest tail that can follow a checkpoint.

    The tail (version `NEWEST` of the first tasks) is published and can be pulled. What is before it is written past
    the driver, which would wait for the disk ten thousand times, and has no payloads: no start reads them.
    """
    objects = LocalObjectStore(folder)
    header = Ledger.create(objects, actor="trainer").header
    (folder / commit_key(1)).parent.mkdir()
    state = fold(header.empty_state(), _written(folder, header))
    prompts = PromptStore(Ledger(objects, header, state, actor="trainer"), objects)
    for index in range(TAIL):
        prompts.publish(sample_prompt(index), sample_task(task_name(index)))


def _written(folder: Path, header: StoreHeader) -> Iterator[Commit]:
    """Commits that retrain, gate and promote ten tasks each, once they are on disk."""
    parent = header.digest
    for number in range(1, COMMITS + 1):
        first = (number - 1) * VERSIONS_PER_COMMIT
        commit = Commit(
            number=number,
            id=f"{number:032x}",
            parent=parent,
            at=f"2026-01-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00.000000Z",
            actor="trainer",
            reason="nightly",
            operations=tuple(each for turn in range(first, first + VERSIONS_PER_COMMIT) for each in _retrain(turn)),
            checkpoint=_UNREAD_DIGEST if names_checkpoint(number) else None,
        )
        data = commit.to_bytes()
        (folder / commit_key(number)).write_bytes(data)
        parent = sha256_hex(data)
        yield commit


def _retrain(turn: int) -> tuple[Operation, ...]:
    """One version of one task, its gate's verdict and its promotion."""
    task, version = task_name(turn % TASKS), turn // TASKS + 1
    verdict = {"verdict": "pass", "metric": "accuracy", "candidate": 0.91, "production": 0.9, "rows": 1000}
    manifest, payload = (sha256_hex(f"{kind} {turn}".encode()) for kind in ("manifest", "payload"))
    return (
        Publish(task, version, manifest, payload),
        Attest(task, version, "gate", verdict),
        MoveAlias(task, "production", version - 1 or None, version),
    )
