"""The log delivered to a sink, from a durable place on, through failures of either side."""

import json
import logging
import random
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from promptstore.core.instant import format_instant
from promptstore.core.name import check_name
from promptstore.core.operation import operation_to_json
from promptstore.errors import ConflictError, StoreUnavailableError
from promptstore.outbox.sink import NotDeliveredError, Sink
from promptstore.store.file_lock import FileLock, Holder
from promptstore.store.files import write_atomically
from promptstore.store.following import read_commit
from promptstore.store.ledger import Ledger
from promptstore.store.watch import Cursor, Event, watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries: twice as long each time, up to `longest_s`, each shortened by chance by up to a half."""

    first_s: float = 1.0
    longest_s: float = 300.0

    def pause_s(self, failures: int, draw: Callable[[], float]) -> float:
        longest = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return longest * (1 - draw() / 2)


@dataclass(frozen=True, slots=True)
class OutboxPlace:
    """What an outbox keeps on disk, under its name: how far it came, what it is stuck on, and who is at work."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        check_name(self.name, "outbox name")

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.folder / self.name, "cursor")

    @property
    def lock(self) -> FileLock:
        return FileLock(self.folder / self.name / "lock")

    @property
    def begun_file(self) -> Path:
        """There once history was skipped."""
        return self.folder / self.name / "begun"

    @property
    def stuck_file(self) -> Path:
        return self.folder / self.name / "stuck.json"

    def stuck(self) -> dict[str, Any] | None:
        """The event that is not taken: which, since when, after how many tries, why; `None` if all goes well."""
        try:
            return dict(json.loads(self.stuck_file.read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def sender(self) -> Holder | None:
        """The process that delivers now."""
        return self.lock.holder()


class Outbox:
    """Delivers every operation of the log to a sink, at least once and in order.

    The place on disk moves past a commit only when the sink has taken all of its events, so whoever goes on after a
    crash begins with the commit that was being delivered. An event that is not taken holds up those behind it, for as
    long as it takes: skipping it would be losing it.
    """

    def __init__(
        self,
        place: OutboxPlace,
        sink: Sink,
        *,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._place = place
        self._sink = sink
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._draw = draw
        self._now = now

    def deliver(
        self,
        ledger: Ledger,
        *,
        only: Collection[str] = (),
        skips_history: bool = False,
        poll_s: float | None = 1.0,
    ) -> int:
        """Deliver what is there, then what comes; with `poll_s=None` return at the end of the log. How many were taken.

        only: operations to deliver, as in `publish`; all by default. skips_history: a new outbox begins behind what is
        in the log already.

        Raises:
            ConflictError: another process delivers for this outbox.
            RefusedError: the receiver wants no more events.
            UntrustedError: the place is of another store, or the log was rewritten.
        """
        lock = self._place.lock
        if not lock.take(f"outbox {self._place.name}"):
            raise ConflictError(
                f"outbox {self._place.name} is being delivered already, by {self._place.sender() or 'somebody'}; "
                "two senders would mix up the order"
            )
        try:
            if skips_history:
                self._skip_history(ledger)
            return self._deliver(ledger, only, poll_s)
        finally:
            lock.give_back()

    def _skip_history(self, ledger: Ledger) -> None:
        """Once: a log that was empty then has no commit to note, and what came since is no history."""
        if self._place.begun_file.exists():
            return
        if self._place.cursor.load(ledger) == 0 and (head := ledger.refresh().number):
            self._place.cursor.save(ledger, read_commit(ledger.objects, head))
        write_atomically(self._place.begun_file, b"")

    def _deliver(self, ledger: Ledger, only: Collection[str], poll_s: float | None) -> int:
        taken = failures = 0
        while True:
            try:
                for event in watch(ledger, cursor=self._place.cursor, poll_s=poll_s, sleep=self._sleep):
                    failures = 0
                    if not only or operation_to_json(event.operation)["op"] in only:
                        self._insist(event)
                        taken += 1
                return taken
            except StoreUnavailableError as error:
                failures += 1
                pause_s = self._backoff.pause_s(failures, self._draw)
                log.warning("outbox %s cannot read the log, next try in %.1f s: %s", self._place.name, pause_s, error)
                self._sleep(pause_s)

    def _insist(self, event: Event) -> None:
        """Offer the event until it is taken."""
        failures, since = 0, format_instant(self._now())
        while True:
            try:
                self._sink.send(event)
            except NotDeliveredError as error:
                failures += 1
                pause_s = max(error.retry_after_s, self._backoff.pause_s(failures, self._draw))
                self._tell_stuck(event, since, failures, error, pause_s)
                self._sleep(pause_s)
                continue
            if failures:
                log.warning("outbox %s: event %s was taken at try %d", self._place.name, event.id, failures + 1)
            with suppress(FileNotFoundError):
                self._place.stuck_file.unlink()
            return

    def _tell_stuck(self, event: Event, since: str, tries: int, error: NotDeliveredError, pause_s: float) -> None:
        operation = operation_to_json(event.operation)
        what = " ".join(str(operation[key]) for key in ("op", "task", "alias") if key in operation)
        stuck = {"event": event.id, "what": what, "since": since, "tries": tries, "error": str(error)}
        write_atomically(self._place.stuck_file, json.dumps(stuck).encode(), is_durable=False)
        log.warning(
            "outbox %s is stuck on event %s (%s) since %s, try %d failed, next in %.1f s: %s",
            self._place.name,
            event.id,
            what,
            since,
            tries,
            pause_s,
            error,
        )
