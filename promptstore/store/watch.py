"""Following the log as events, with a place to go on from."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.core.commit import Commit
from promptstore.core.digest import canonical_json, parse_json
from promptstore.core.fields import Fields
from promptstore.core.operation import Operation, operation_to_json
from promptstore.errors import CorruptError, InvalidInputError, UntrustedError
from promptstore.store.files import write_atomically
from promptstore.store.following import read_commit
from promptstore.store.ledger import Ledger

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of one commit. id: unique in the store and the same each time the event is seen."""

    store_id: str
    commit: Commit
    index: int

    @property
    def id(self) -> str:
        return f"{self.commit.number}.{self.index}"

    @property
    def operation(self) -> Operation:
        return self.commit.operations[self.index]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "store": self.store_id,
            "commit": self.commit.number,
            "at": self.commit.at,
            "actor": self.commit.actor,
            "reason": self.commit.reason,
            **operation_to_json(self.operation),
        }

    def to_line(self) -> str:
        """The event as one line of JSON, without a line feed."""
        return json.dumps(self.to_json(), ensure_ascii=False)


class Cursor:
    """How far one named consumer has come, in a small file of `folder`; one consumer per name."""

    def __init__(self, folder: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"cursor name {name!r} is not valid: use 1 to 64 letters, digits, '.', '_' and '-'")
        self._path = folder / f"{name}.json"

    def load(self, ledger: Ledger) -> int:
        """Number of the last commit that was handled whole; 0 for a new cursor.

        Raises:
            UntrustedError: the cursor was made on another store, or the log was rewritten below it.
            CorruptError: its file is damaged; delete it to begin at the first event.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        try:
            fields = Fields(parse_json(data, str(self._path)), str(self._path))
            store_id, number, digest = fields.text("store"), fields.integer("commit"), fields.digest("digest")
            fields.done()
        except CorruptError as error:
            raise CorruptError(f"{error}. Delete this cursor to see every event again from the first") from error
        if store_id != ledger.header.id:
            raise UntrustedError(f"cursor {self._path} is of store {store_id}, this is {ledger.header.id}; use another")
        if read_commit(ledger.objects, number).digest != digest:
            raise UntrustedError(f"cursor {self._path}: commit {number} is another than the one that was handled")
        return number

    def save(self, ledger: Ledger, commit: Commit) -> None:
        """Note that `commit` was handled."""
        place = {"store": ledger.header.id, "commit": commit.number, "digest": commit.digest}
        write_atomically(self._path, canonical_json(place))


def watch(
    ledger: Ledger,
    *,
    cursor: Cursor | None = None,
    start: int = 1,
    poll_s: float | None = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Every operation of the log in order, from commit `start` or from where `cursor` stands.

    A commit counts as handled, and the cursor moves past it, when the consumer asks for the event after its last. A
    consumer that dies sees the events of the commit it was in again: each at least once, in order.

    poll_s: how often to look for news at the end of the log; `None` stops there instead.
    """
    number = start if cursor is None else cursor.load(ledger) + 1
    while True:
        for commit in ledger.commits(number):
            for index in range(len(commit.operations)):
                yield Event(ledger.header.id, commit, index)
            number = commit.number + 1
            if cursor is not None:
                cursor.save(ledger, commit)
        if poll_s is None:
            return
        sleep(poll_s)
