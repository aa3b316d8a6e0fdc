"""A folded state as bytes, and back. FORMAT.md, section 6."""

import re
from collections.abc import Collection, Iterator, Mapping

from promptstore.core.digest import canonical_json, parse_json
from promptstore.core.fields import Fields
from promptstore.core.header import StoreHeader
from promptstore.core.state import AliasMove, Attestation, PromptVersion, StoreState, TaskState
from promptstore.errors import CorruptError

CHECKPOINT_FORMAT = 1
_DIGEST = re.compile(rb"[0-9a-f]{64}")


class StoredTasks(Mapping[str, TaskState]):
    """Tasks by name, each decoded when it is first asked for.

    A store of 100,000 versions is half a million objects; a process that serves three tasks of it need not make them
    all, nor have the cycle collector walk them.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: dict[str, TaskState | bytes]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> TaskState:
        entry = self._entries[name]
        if isinstance(entry, bytes):
            entry = self._entries[name] = _decode_task(name, entry)
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __or__(self, changed: Mapping[str, TaskState]) -> "StoredTasks":
        """These tasks with some replaced or added, the others as they are."""
        return StoredTasks({**self._entries, **changed})

    def mentioning(self, digests: Collection[str]) -> Iterator[TaskState]:
        """The tasks that hold one of `digests`, and maybe others; decodes no more of them than it must."""
        wanted = {digest.encode() for digest in digests}
        for name, entry in list(self._entries.items()):
            if not isinstance(entry, bytes) or not wanted.isdisjoint(_DIGEST.findall(entry)):
                yield self[name]

    def encoded(self, name: str) -> bytes:
        """The line of one task in a checkpoint."""
        entry = self._entries[name]
        return entry if isinstance(entry, bytes) else _encode_task(entry)


def checkpoint_to_bytes(state: StoreState) -> bytes:
    """JSON lines: what the state is and the names of its tasks, then one line per task. Equal states, equal bytes."""
    names = sorted(state.tasks)
    tasks = state.tasks if isinstance(state.tasks, StoredTasks) else StoredTasks(dict(state.tasks))
    head = canonical_json(
        {
            "format": CHECKPOINT_FORMAT,
            "store": state.store_id,
            "number": state.number,
            "digest": state.digest,
            "at": state.at,
            "condemned": dict(state.condemned),
            "tasks": names,
        }
    )
    return b"\n".join([head, *(tasks.encoded(name) for name in names), b""])


def checkpoint_from_bytes(data: bytes, header: StoreHeader) -> StoreState:
    """The state in `data`, of the store that `header` describes. The caller has checked that a commit names `data`.

    Raises:
        CorruptError: not a checkpoint of this store in a format this version reads.
    """
    first, *lines = data.split(b"\n")
    fields = Fields(parse_json(first, "checkpoint"), "checkpoint")
    if (found := fields.integer("format")) != CHECKPOINT_FORMAT:
        raise CorruptError(f"checkpoint has format {found}, this promptstore reads {CHECKPOINT_FORMAT}")
    if (store := fields.text("store")) != header.id:
        raise CorruptError(f"checkpoint is of store {store}, expected {header.id}")
    names = fields.names("tasks")
    if len(lines) != len(names) + 1 or lines[-1]:
        raise CorruptError(f"checkpoint has {len(lines)} lines after the first, expected one for each of {len(names)}")
    state = StoreState(
        store_id=header.id,
        number=fields.integer("number", at_least=1),
        digest=fields.digest("digest"),
        at=fields.text("at"),
        protected_aliases=header.protected_aliases,
        tasks=StoredTasks(dict(zip(names, lines, strict=False))),
        condemned=fields.mapping("condemned"),
    )
    fields.done()
    return state


def _encode_task(task: TaskState) -> bytes:
    versions = [
        [
            each.digest,
            each.payload,
            each.commit,
            each.at,
            each.actor,
            each.expired_in,
            [[said.kind, said.body, said.commit, said.at, said.actor] for said in each.attestations],
        ]
        for each in task.versions
    ]
    moves = [
        [each.alias, each.before, each.after, each.commit, each.at, each.actor, each.reason, each.forced]
        for each in task.moves
    ]
    return canonical_json({"versions": versions, "aliases": dict(task.aliases), "moves": moves})


def _decode_task(name: str, line: bytes) -> TaskState:
    what = f"checkpoint: task {name}"
    fields = Fields(parse_json(line, what), what)
    try:
        versions = tuple(
            PromptVersion(
                name, number, digest, payload, commit, at, actor, tuple(Attestation(*each) for each in said), gone
            )
            for number, (digest, payload, commit, at, actor, gone, said) in enumerate(fields.array("versions"), start=1)
        )
        moves = tuple(AliasMove(name, *row) for row in fields.array("moves"))
    except (TypeError, ValueError) as error:
        raise CorruptError(f"{what} is malformed: {error}") from error
    task = TaskState(name, versions, fields.mapping("aliases"), moves)
    fields.done()
    return task
