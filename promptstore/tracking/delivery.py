"""Sends events from a thread of its own, so that neither a slow server nor a dead one is felt by a fit."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Condition, Thread

from promptstore.errors import CorruptError
from promptstore.tracking.events import Event, RunStarted, merged
from promptstore.tracking.port import TrackingReport
from promptstore.tracking.sink import Sink, TrackingRefusedError, TrackingUnavailableError
from promptstore.tracking.spool import Spool

log = logging.getLogger(__name__)

MOST_REFUSALS_SAID = 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a tracking server.

    rest: after working for a second the thread rests for this many, so that tracking takes under 2 % of one core.
    retries_s: pauses between the tries for one event, before it goes to the spool.
    return_s: how long a server that failed is left alone.
    close_s: how long the end of a job waits.
    backlog: events waiting in memory; more than that go to the spool.
    """

    interval_s: float = 1.0
    rest: float = 60.0
    longest_rest_s: float = 60.0
    retries_s: tuple[float, ...] = (0.5, 2.0, 5.0)
    return_s: float = 30.0
    close_s: float = 30.0
    backlog: int = 200_000


class Delivery:
    """Takes events from any thread, sends them in order from one, and spools them while the server is down."""

    def __init__(
        self,
        sink: Sink,
        spool: Spool,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._spool = spool
        self._patience = patience or Patience()
        self._clock = clock
        self._changed = Condition()
        self._pending: list[Event] = []
        self._in_hand: deque[Event] = deque()
        self._started: dict[str, RunStarted] = {}
        self._named_in_spool: set[str] = set()
        self._thread: Thread | None = None
        self._is_closing = False
        self._is_urgent = False
        self._retry_at: float | None = None
        self._delivered = 0
        self._error: str | None = None
        self._refused: list[str] = []

    def put(self, event: Event) -> None:
        """Take an event; returns at once."""
        with self._changed:
            if self._thread is None:
                self._thread = Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            if isinstance(event, RunStarted):
                self._started[event.run] = event
            self._pending.append(event)
            if len(self._pending) > self._patience.backlog:
                self._changed.notify_all()

    def run_id(self, key: str, timeout_s: float) -> str | None:
        """The server's id of a run, as soon as it is known; `None` once the server is seen to be down."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._sink.run_id(key) is not None or self._error is not None, timeout_s)
            return self._sink.run_id(key)

    def close(self) -> TrackingReport:
        """Send or spool everything, and stop. Waits `close_s` at most."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._patience.close_s)
            if self._thread.is_alive():
                self._give_up()
        return self._report()

    @property
    def _is_down(self) -> bool:
        return self._retry_at is not None

    def _work(self) -> None:
        if not self._spool.is_empty:
            self._retry_at = self._clock()  # an earlier try of this job left something: that goes first
        rest_s = 0.0
        while self._wait(rest_s):
            began = self._clock()
            self._turn()
            worked_s = self._clock() - began
            rest_s = min(max(self._patience.interval_s, worked_s * self._patience.rest), self._patience.longest_rest_s)
        self._retry_at = None if self._retry_at is None else self._clock()
        self._turn()

    def _wait(self, rest_s: float) -> bool:
        """Rest, unless somebody is waiting; `False` at the end."""
        with self._changed:
            self._changed.wait_for(self._must_hurry, rest_s)
            self._is_urgent = False
            return not self._is_closing

    def _must_hurry(self) -> bool:
        return self._is_closing or self._is_urgent or len(self._pending) > self._patience.backlog

    def _turn(self) -> None:
        with self._changed:
            self._in_hand, self._pending = deque(merged(self._pending)), []
        try:
            if self._is_down and not self._has_recovered():
                self._keep(self._in_hand)
            else:
                self._send_all()
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: a fit must never end for tracking
            self._fail(f"{type(error).__name__}: {error}")
            self._keep(self._in_hand)
        with self._changed:
            self._in_hand.clear()
            self._changed.notify_all()

    def _send_all(self) -> None:
        while self._in_hand:
            try:
                self._send(self._in_hand[0])
            except TrackingUnavailableError as error:
                self._fail(str(error))
                self._keep(self._in_hand)
                return
            with self._changed:
                self._in_hand.popleft()
                self._changed.notify_all()

    def _send(self, event: Event) -> None:
        pauses = list(self._patience.retries_s)
        while True:
            try:
                self._sink.send(event)
                self._delivered += 1
                return
            except TrackingRefusedError as error:
                self._refuse(str(error))
                return
            except TrackingUnavailableError:
                if not pauses:
                    raise
                with self._changed:  # at the end of a job the tries follow each other without a pause
                    self._changed.wait_for(lambda: self._is_closing, pauses.pop(0))

    def _has_recovered(self) -> bool:
        """Whether the spool could be sent, if it is time to try."""
        if self._retry_at is None or self._clock() < self._retry_at:
            return False
        sent = send_spool(self._spool, self._sink)
        self._delivered += sent.delivered
        for reason in sent.refused:
            self._refuse(reason)
        if sent.error is not None:
            self._fail(sent.error)
            return False
        if self._error is not None:
            log.warning("tracking server answers again; what was spooled is sent")
        self._retry_at, self._error = None, None
        self._named_in_spool.clear()
        return True

    def _fail(self, reason: str) -> None:
        if self._error is None:
            log.warning("tracking server cannot be reached, keeping records in %s: %s", self._spool.path, reason)
        with self._changed:
            self._error = reason
            self._retry_at = self._clock() + self._patience.return_s
            self._changed.notify_all()

    def _refuse(self, reason: str) -> None:
        if len(self._refused) < MOST_REFUSALS_SAID:
            log.warning("tracking server refuses a record: %s", reason)
            self._refused.append(reason)

    def _keep(self, events: Iterable[Event]) -> None:
        """Spool events, each run's beginning before its first."""
        headed: list[Event] = []
        for event in events:
            if event.run not in self._named_in_spool and event.run in self._started:
                self._named_in_spool.add(event.run)
                headed.append(self._started[event.run])
            if not isinstance(event, RunStarted):
                headed.append(event)
        try:
            self._spool.append(headed)
        except OSError as error:
            self._refuse(f"{len(headed)} records are lost, the spool {self._spool.path} cannot be written: {error}")

    def _give_up(self) -> None:
        """The thread hangs in a call: spool what it holds; what it still sends does no harm twice."""
        with self._changed:
            waiting = [*self._in_hand, *merged(self._pending)]
            self._pending = []
        self._fail(f"no answer within {self._patience.close_s:g} s")
        self._keep(waiting)

    def _report(self) -> TrackingReport:
        spooled = 0 if self._spool.is_empty else self._spool.path.read_bytes().count(b"\n")
        return TrackingReport(
            delivered=self._delivered,
            spooled=spooled,
            spool=self._spool.path if spooled else None,
            error=self._error,
            refused=tuple(self._refused),
        )


def send_spool(spool: Spool, sink: Sink) -> TrackingReport:
    """Send what a spool keeps, in order, and forget what was sent."""
    try:
        kept = spool.read()
    except CorruptError as error:
        return TrackingReport(refused=(f"{error}; set aside as {spool.set_aside()}",))
    sent = 0
    refused = []
    failure: str | None = None
    for each in kept:
        try:
            sink.send(each.event)
        except TrackingRefusedError as error:
            refused.append(str(error))
        except TrackingUnavailableError as error:
            failure = str(error)
            break
        sent += 1
    if sent:
        spool.drop(kept[:sent])
    left = len(kept) - sent
    return TrackingReport(sent - len(refused), left, spool.path if left else None, failure, tuple(refused))
