"""A folded state as bytes, and back. FORMAT.md, section 6."""

from typing import Any

from promptstore.core.digest import canonical_json, parse_json
from promptstore.core.fields import Fields
from promptstore.core.header import StoreHeader
from promptstore.core.state import AliasMove, Attestation, PromptVersion, StoreState, TaskState
from promptstore.errors import CorruptError

CHECKPOINT_FORMAT = 1


def checkpoint_to_bytes(state: StoreState) -> bytes:
    """Canonical JSON of `state`: equal states give equal bytes."""
    return canonical_json(
        {
            "format": CHECKPOINT_FORMAT,
            "store": state.store_id,
            "number": state.number,
            "digest": state.digest,
            "at": state.at,
            "tasks": {name: _task_to_json(task) for name, task in state.tasks.items()},
            "condemned": dict(state.condemned),
        }
    )


def checkpoint_from_bytes(data: bytes, header: StoreHeader) -> StoreState:
    """The state in `data`, of the store that `header` describes. The caller has checked that a commit names `data`.

    Raises:
        CorruptError: not a checkpoint of this store in a format this version reads.
    """
    fields = Fields(parse_json(data, "checkpoint"), "checkpoint")
    if (found := fields.integer("format")) != CHECKPOINT_FORMAT:
        raise CorruptError(f"checkpoint has format {found}, this promptstore reads {CHECKPOINT_FORMAT}")
    if (store := fields.text("store")) != header.id:
        raise CorruptError(f"checkpoint is of store {store}, expected {header.id}")
    try:
        state = StoreState(
            store_id=header.id,
            number=fields.integer("number", at_least=1),
            digest=fields.digest("digest"),
            at=fields.text("at"),
            protected_aliases=header.protected_aliases,
            tasks={name: _task(name, value) for name, value in fields.mapping("tasks").items()},
            condemned=fields.mapping("condemned"),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptError(f"checkpoint is malformed: {error}") from error
    fields.done()
    return state


def _task_to_json(task: TaskState) -> dict[str, Any]:
    return {
        "versions": [
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
        ],
        "aliases": dict(task.aliases),
        "moves": [
            [each.alias, each.before, each.after, each.commit, each.at, each.actor, each.reason, each.forced]
            for each in task.moves
        ],
    }


def _task(name: str, value: Any) -> TaskState:
    versions = tuple(
        PromptVersion(
            name, number, digest, payload, commit, at, actor, tuple(Attestation(*each) for each in said), gone
        )
        for number, (digest, payload, commit, at, actor, gone, said) in enumerate(value["versions"], start=1)
    )
    return TaskState(name, versions, value["aliases"], tuple(AliasMove(name, *row) for row in value["moves"]))
