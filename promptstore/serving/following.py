"""Follows the store's log and switches aliases between requests, once the new version is ready to answer."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Event, Lock, Thread
from typing import Protocol

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.manifest import Manifest
from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion, StoreState
from promptstore.errors import (
    CorruptError,
    IncompatibleModelError,
    NotFoundError,
    PromptStoreError,
    StoreUnavailableError,
    UntrustedError,
)
from promptstore.runtime.bank import PromptBank
from promptstore.serving.arrivals import CLOSE_WITHIN_S, TRIAL, Arrivals, Made
from promptstore.serving.earlier import LOOK_BACK, Earlier
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.table import AliasKey, AliasTable, Awaited, Refusal, Target
from promptstore.serving.trials import Trial
from promptstore.store.prompt_store import PulledPrompt
from promptstore.store.rollout import Rollout, active_rollouts
from promptstore.store.store_threads import StoreThreads

logger = logging.getLogger(__name__)
# The state that the store was last seen at, and how many seconds ago.
Remember = Callable[[StoreState, float], object]
# What is ready by then switches together; the rest, when it is ready.
READY_WITHIN_S = 2.0
# How long a start waits while the store is away: for what is in the local cache, behind what is not.
AWAY_WITHIN_S = 60.0


class FollowedStore(Protocol):
    """What following needs of a `PromptStore`."""

    @property
    def state(self) -> StoreState: ...
    def refresh(self) -> StoreState: ...
    def manifest(self, digest: str) -> Manifest: ...
    def pull(self, ref: PromptRef, *, for_model: BaseModelFingerprint | None) -> PulledPrompt: ...


def forget(state: StoreState, unseen_s: float) -> None:
    """The memory of a server that is not to start without its store."""
    del state, unseen_s


@dataclass(frozen=True, slots=True)
class FollowStatus:
    """How well the store is followed. seen_at: monotonic seconds of the last look that succeeded.

    problem: why the last look failed; `None` if it did not.
    """

    seen_at: float
    problem: PromptStoreError | None = None


class Follower:
    """Keeps an `AliasTable` in step with the store. `table` and `status` are for any thread, at no cost.

    load: makes a pulled version ready for the model that is served.
    prepare: puts a held prompt on the device; the returned future says when.
    ready_within_s: how long a switch waits for all that it is to switch; what is not ready then follows by itself.
    insist: told at each look of every trial that the store has going on; see `TrialJudge`.
    remember: told at each look, once its outcome is switched to, what the store was last seen at and how many seconds
        ago.
    status: how the store was last seen, if what it held when it was opened is not from itself.
    """

    def __init__(
        self,
        store: FollowedStore,
        bank: PromptBank[LoadedPrompt],
        *,
        fingerprint: BaseModelFingerprint,
        load: Callable[[PulledPrompt], LoadedPrompt],
        prepare: Callable[[str], Future[object]],
        insist: Callable[[Trial], object],
        tasks: frozenset[str] = frozenset(),
        poll_s: float = 1.0,
        ready_within_s: float = READY_WITHIN_S,
        remember: Remember = forget,
        status: FollowStatus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._bank = bank
        self._fingerprint = fingerprint
        self._load = load
        self._prepare = prepare
        self._insist = insist
        self._remember = remember
        self._tasks = tasks
        self._poll_s = poll_s
        self._ready_within_s = ready_within_s
        self._clock = clock
        self._polling = Lock()
        self._stopped = Event()
        self._thread = Thread(target=self._follow, name="follower", daemon=True)
        self._arrivals = Arrivals(bank, self.pull, prepare, clock)
        self._prefetching = StoreThreads(1, "prefetch")
        self._held: dict[AliasKey, Target] = {}
        self._earlier = Earlier()
        self.table = AliasTable(store.state)
        self.status = status or FollowStatus(clock())

    @property
    def staleness_s(self) -> float:
        """Seconds since the store was last seen."""
        return max(0.0, self._clock() - self.status.seen_at)

    def alias_staleness_s(self, key: AliasKey) -> float:
        """Seconds since the version that an alias is served at was seen to be the one that the store says."""
        return max(self.staleness_s, self._clock() - self._since(key))

    def start(self) -> None:
        """Serves what the store held when it was opened, then follows it. Blocks until the aliases are loaded."""
        state = self._store.state
        self._switch(state, is_first=True)
        self._remember(state, self.staleness_s)
        self._thread.start()

    def close(self) -> None:
        """Looks no more; does not wait for a store that hangs."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CLOSE_WITHIN_S)
        self._prefetching.close(within_s=CLOSE_WITHIN_S)
        self._arrivals.close()

    def poll(self) -> None:
        """Looks at the store once and switches what moved. Never raises for the store: see `status`."""
        with self._polling:
            try:
                state = self._store.refresh()
            except (StoreUnavailableError, CorruptError, UntrustedError, NotFoundError) as error:
                self._note(error)
                self._take_what_came()
                return
            if self.status.problem is not None:
                logger.info("the store is seen again, at commit %d", state.number)
            self.status = FollowStatus(self._clock())
            if state is not self.table.state or self._has_unfinished:
                self._switch(state)
            for trial, _ in self.table.trials.values():
                self._insist(trial)
            self._remember(state, 0.0)

    def pull(self, ref: PromptRef, version: PromptVersion) -> LoadedPrompt:
        """A version from the store, ready for the model; blocks.

        Raises:
            IncompatibleModelError, CorruptError, InvalidInputError, NotFoundError: it cannot be served.
            StoreUnavailableError: it is not in the local cache and the store cannot be reached.
        """
        self._store.manifest(version.digest).fingerprint.require_match(self._fingerprint, str(version))
        return self._load(self._store.pull(ref, for_model=self._fingerprint))

    @property
    def _has_unfinished(self) -> bool:
        table = self.table
        return bool(table.awaited or self._earlier.wanted) or any(
            each.retry_at <= self._clock() for each in table.refused.values()
        )

    def _follow(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.poll()
            except Exception:
                logger.exception("following failed; serving what was last known")

    def _note(self, error: PromptStoreError) -> None:
        if self.status.problem is None:
            is_away = isinstance(error, StoreUnavailableError)
            what = "the store cannot be reached" if is_away else "the store's log is refused"
            logger.warning("%s; serving what was last known: %s", what, error)
        self.status = FollowStatus(self.status.seen_at, error)

    def _take_what_came(self) -> None:
        """Switches, while the store is not seen, what was on its way and needs no more of it."""
        if self.table.awaited or self._earlier.is_trying:
            self._switch(self.table.state, retries=False)
        self._remember(self.table.state, self.staleness_s)

    def _switch(self, state: StoreState, *, is_first: bool = False, retries: bool = True) -> None:
        """Makes ready what aliases newly point at, and replaces the table in one assignment; what takes long, later.

        retries: what was refused, and may not be any more, is tried again.
        """
        old, held = self.table, self._held
        rollouts = {(task, alias + TRIAL): found for (task, alias), found in active_rollouts(state).items()}
        wanted = dict(self._wanted(state, rollouts))
        moved = {
            key: version
            for key, version in wanted.items()
            if not self._is_settled(key, version) and (retries or key not in old.refused)
        }
        self._earlier.keep({key: version for key, version in wanted.items() if key not in held})
        made, fallen = self._bring(state, moved, rollouts, is_first=is_first)
        self._held = {
            **{key: target for key, target in held.items() if key in wanted},
            **{key: target for key, target in made.items() if isinstance(target, Target)},
            **fallen,
        }
        refused = {
            key: replace(refusal, is_foreign=_is_foreign(refusal, self._held.get(key)))
            for key, refusal in old.refused.items()
            if key not in made and key in wanted and refusal.version.digest == wanted[key].digest
        } | {
            key: replace(refusal, is_foreign=_is_foreign(refusal, self._held.get(key)), since=self._since(key))
            for key, refusal in made.items()
            if isinstance(refusal, Refusal)
        }
        awaited = {key: Awaited(version, self._since(key)) for key, version in moved.items() if key not in made}
        targets = {key: target for key, target in self._held.items() if key not in rollouts}
        self.table = AliasTable(state, targets, refused, awaited, self._trials(rollouts))
        for key, target in held.items():
            if self._held.get(key) is not target:
                self._bank.release(target.prompt.digest, pin=True)
        for key in moved:
            self._report(key, held.get(key) or fallen.get(key), refused.get(key, made.get(key)), old)
        for (task, alias), target in fallen.items():
            if (task, alias) not in moved:
                logger.warning("%s@%s: %s answers meanwhile", task, alias, target.version)
        self._prefetch(old.state, state, {task for task, _ in targets})

    def _bring(
        self,
        state: StoreState,
        moved: Mapping[AliasKey, PromptVersion],
        rollouts: Mapping[AliasKey, Rollout],
        *,
        is_first: bool,
    ) -> tuple[dict[AliasKey, Made], dict[AliasKey, Target]]:
        """What came of `moved`, and what stands in for what was refused, as far as it is there in time."""
        is_away = self.status.problem is not None
        within_s = self._ready_within_s if not is_first else AWAY_WITHIN_S if is_away else None
        until = math.inf if within_s is None else time.monotonic() + within_s
        made: dict[AliasKey, Made] = {}
        fallen: dict[AliasKey, Target] = {}
        for _ in range(1 + LOOK_BACK):
            wanted = {key: version for key, version in moved.items() if key not in made} | self._earlier.wanted
            left_s = None if within_s is None else max(0.0, until - time.monotonic())
            come = self._arrivals.collect(wanted, within_s=left_s, is_first=is_first)
            fallen |= self._earlier.take(come, is_away=is_away)
            settled = {key: each for key, each in come.items() if key in moved}
            made |= settled
            for key, each in settled.items():
                if isinstance(each, Refusal) and key not in {*self._held, *fallen, *rollouts}:
                    self._earlier.begin(key, state)
        for key in [key for key in fallen if isinstance(made.get(key), Target)]:
            self._bank.release(fallen.pop(key).prompt.digest, pin=True)
        return made, fallen

    def _trials(self, rollouts: Mapping[AliasKey, Rollout]) -> dict[AliasKey, tuple[Trial, Target]]:
        """A trial per rollout whose version can be served; one that goes on keeps its tallies."""
        trials = {}
        for key, rollout in rollouts.items():
            place = (rollout.task, rollout.alias)
            if (target := self._held.get(key)) is not None and target.version.number == rollout.number:
                known = self.table.trials.get(place)
                goes_on = known is not None and known[0].rollout == rollout
                trials[place] = (known[0] if known and goes_on else Trial(rollout, target.version), target)
        return trials

    def _prefetch(self, before: StoreState, after: StoreState, served: Iterable[str]) -> None:
        """Makes the newest version of served tasks ready: what is published now is likely to be promoted soon."""
        for name in served:
            known, newest = before.tasks.get(name), after.tasks[name].versions[-1]
            if known is not None and newest.number > len(known.versions) and not newest.is_expired:
                self._prefetching.submit(self._make_likely, newest)

    def _make_likely(self, version: PromptVersion) -> None:
        ref = PromptRef(version.task, number=version.number)
        with suppress(PromptStoreError):  # whatever is wrong with it is said when an alias moves there
            self._bank.hold(version.digest, lambda: self.pull(ref, version))
            self._prepare(version.digest).add_done_callback(lambda _: self._bank.release(version.digest))

    def _wanted(
        self, state: StoreState, rollouts: Mapping[AliasKey, Rollout]
    ) -> Iterable[tuple[AliasKey, PromptVersion]]:
        for task in state.tasks.values():
            if not self._tasks or task.name in self._tasks:
                for alias, number in task.aliases.items():
                    yield (task.name, alias), task.version(number)
        for key, rollout in rollouts.items():
            if not self._tasks or rollout.task in self._tasks:
                yield key, state.tasks[rollout.task].version(rollout.number)

    def _is_settled(self, key: AliasKey, version: PromptVersion) -> bool:
        refusal = self.table.refused.get(key)
        if refusal is not None:
            return refusal.version.digest == version.digest and self._clock() < refusal.retry_at
        target = self._held.get(key)
        served = None if target is None else (target.version.number, target.version.digest)
        return served == (version.number, version.digest)

    def _since(self, key: AliasKey) -> float:
        """Since when an alias has not been served as the store says; now, if it was until now."""
        known = self.table.refused.get(key) or self.table.awaited.get(key)
        return self._clock() if known is None else known.since

    def _report(self, key: AliasKey, before: Target | None, after: Target | Refusal | None, old: AliasTable) -> None:
        """Says once what came of a move."""
        name = f"{key[0]}@{key[1]}"
        kept = f"{before.version} keeps answering" if before else "the alias is not served"
        if isinstance(after, Target):
            logger.info("%s: %s now answers", name, after.version)
        elif after is None:
            if key not in old.awaited:
                logger.warning("%s: %s, until what it points at now is there", name, kept)
        elif not after.is_foreign and (key not in old.refused or old.refused[key].version != after.version):
            foreseen = isinstance(after.error, PromptStoreError)
            cause = None if foreseen else after.error
            logger.error("%s: %s is refused, %s: %s", name, after.version, kept, after.error, exc_info=cause)


def _is_foreign(refusal: Refusal, before: Target | None) -> bool:
    return isinstance(refusal.error, IncompatibleModelError) and before is None
