"""The log of a store: its only truth. FORMAT.md, sections 4 and 5; why it is so: infra/adr/0001."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import TypedDict, Unpack

from promptstore.core.commit import MAX_COMMIT_BYTES, Commit, names_checkpoint
from promptstore.core.digest import sha256_hex
from promptstore.core.fold import check, fold
from promptstore.core.header import DEFAULT_PROTECTED_ALIASES, StoreHeader
from promptstore.core.instant import format_instant
from promptstore.core.operation import Operation
from promptstore.core.state import StoreState
from promptstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    PromptStoreError,
    StoreUnavailableError,
    UntrustedError,
)
from promptstore.store.checkpoints import encode_checkpoint, leave_checkpoint, load_checkpoint, mend_checkpoint
from promptstore.store.following import Accept, follow, read_commit, read_commits
from promptstore.store.header import create_header, prove_create_only, read_header
from promptstore.store.layout import commit_key
from promptstore.store.memory import HeadMemory
from promptstore.store.objects import ObjectStore
from promptstore.store.past import state_at
from promptstore.store.patience import DEFAULT_PATIENCE, Patience
from promptstore.store.trust import Signer, TrustPolicy, accept_all

Build = Callable[[StoreState], Sequence[Operation]]


def utc_now() -> datetime:
    return datetime.now(UTC)


def random_id() -> str:
    return secrets.token_hex(16)


class LedgerOptions(TypedDict, total=False):
    """What `Ledger` takes besides the store. clock, new_id and patience are replaced in tests.

    signer: signs every commit made. trust: refuses commits that its keys did not sign. memory: refuses a store
    that went back in time since this machine last saw it.
    """

    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    signer: Signer | None
    trust: TrustPolicy | None
    memory: HeadMemory | None
    patience: Patience


class Ledger:
    """Reads and extends one store's log. Many threads may share one; commits of one process queue up for each other."""

    def __init__(
        self,
        objects: ObjectStore,
        header: StoreHeader,
        state: StoreState,
        *,
        actor: str,
        clock: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = random_id,
        signer: Signer | None = None,
        trust: TrustPolicy | None = None,
        memory: HeadMemory | None = None,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self.objects = objects
        self.header = header
        self._state = state
        self._actor = actor
        self._clock = clock
        self._new_id = new_id
        self._signer = signer
        self._accept: Accept = trust.require if trust else accept_all
        self._memory = memory
        self._patience = patience
        self._is_probed = False
        self._is_proved = True
        self._writing = Lock()
        self._advancing = Lock()

    @classmethod
    def create(
        cls,
        objects: ObjectStore,
        *,
        actor: str,
        protected_aliases: frozenset[str] = DEFAULT_PROTECTED_ALIASES,
        **options: Unpack[LedgerOptions],
    ) -> "Ledger":
        """Make the store if there is none, prove that it can hold a log, and open it. Safe to repeat and to race.

        protected_aliases: of a new store; one that exists keeps its own.

        Raises:
            UnsupportedStoreError: the object store overwrites what it was told only to create.
        """
        header = StoreHeader(
            id=options.get("new_id", random_id)(),
            created_at=format_instant(options.get("clock", utc_now)()),
            protected_aliases=protected_aliases,
        )
        create_header(objects, header, options.get("patience", DEFAULT_PATIENCE))
        ledger = cls.open(objects, actor=actor, **options)
        ledger.probe()
        return ledger

    @classmethod
    def open(cls, objects: ObjectStore, *, actor: str, **options: Unpack[LedgerOptions]) -> "Ledger":
        """The ledger of a store that exists, followed to its end by way of its newest checkpoint.

        Raises:
            NotFoundError: there is no store at that place.
            CorruptError: its log is damaged. UntrustedError: its log is not what `trust` and `memory` demand.
        """
        trust = options.get("trust")
        accept: Accept = trust.require if trust else accept_all
        header = read_header(objects)
        start = partial(load_checkpoint, objects, header, accept)
        state = _end_of_log(objects, header, start, accept, options.get("memory"))
        return cls(objects, header, state, actor=actor, **options)

    @classmethod
    def resume(
        cls,
        objects: ObjectStore,
        header: StoreHeader,
        state: StoreState,
        *,
        actor: str,
        **options: Unpack[LedgerOptions],
    ) -> "Ledger":
        """The ledger of a store that cannot be reached, from what was last known of it; asks nobody.

        The first `refresh` that reaches the store makes sure that `state` is of its log, and that `memory` agrees.
        """
        ledger = cls(objects, header, state, actor=actor, **options)
        ledger._is_proved = False
        return ledger

    @property
    def state(self) -> StoreState:
        """The store as last seen; `refresh` looks again."""
        return self._state

    def refresh(self) -> StoreState:
        """Follow the log to its end: one GET when nothing is new.

        Raises:
            UntrustedError: the log is not the one that this ledger was resumed from, or not what `trust` demands.
        """
        self._prove()
        return self._follow(self._state)

    def commits(self, start: int = 1) -> Iterator[Commit]:
        """The log from commit `start` to its end, each commit checked to follow the one before it."""
        parent = ""
        for batch in read_commits(self.objects, start):
            parent = parent or _digest_at(self.objects, self.header, start - 1)
            for commit in batch:
                self._accept(commit)
                if commit.parent != parent:
                    raise CorruptError(f"commit {commit.number} does not follow commit {commit.number - 1}")
                parent = commit.digest
                yield commit

    def state_at(self, moment: datetime) -> StoreState:
        """The state after the last commit dated `moment` or before, of the log as last seen.

        Raises:
            CorruptError: the log up to there was rewritten since.
        """
        return state_at(self.objects, self.header, self._state, moment, self._accept)

    def mend_checkpoint(self) -> bool:
        """Write the newest checkpoint and hint, if their writer died before it did. Whether there was need.

        Part of upkeep; without it the next hundred commits make the next checkpoint.
        """
        return mend_checkpoint(self.objects, self.header, self.refresh(), self._accept)

    def commit(self, build: Build, *, reason: str, actor: str | None = None) -> Commit | None:
        """Append one commit of the operations that `build` makes of the newest state; `None` if it makes none.

        build: called again with a newer state each time another writer was first; must have no effect of its own.

        Raises:
            ConflictError, NotFoundError, RefusedError, InvalidInputError: by `build`, or because its operations
                are not legal at the end of the log. Nothing was changed.
            CommitOutcomeUnknownError: it may have taken effect, now or soon; repeating is safe for operations that
                `build` leaves out when they are already there.
            StoreUnavailableError: nothing was changed.
        """
        with self._writing:
            self._prove()
            self.probe()
            state, is_newest = self._state, False
            for _ in self._patience.after_races():
                operations = self._operations(build, state, reason, is_newest=is_newest)
                if operations:
                    commit, checkpoint = self._draft(state, operations, reason, self._actor if actor is None else actor)
                    after, is_ours = self._append(state, commit)
                    if is_ours:
                        leave_checkpoint(self.objects, commit.number, state, checkpoint)
                        return commit
                    state, is_newest = after, True
                elif is_newest:
                    return None
                else:
                    state, is_newest = self.refresh(), True
            raise ConflictError(
                f"lost {self._patience.race_tries} races to other writers; nothing was changed, try again"
            )

    def probe(self) -> None:
        """Prove, once, that the object store keeps create-only writes; `commit` does it by itself.

        Raises:
            UnsupportedStoreError: it does not, so it cannot hold a log that several writers extend.
        """
        if not self._is_probed:
            prove_create_only(self.objects, self.header, self._patience)
            self._is_probed = True

    def _operations(self, build: Build, state: StoreState, reason: str, *, is_newest: bool) -> tuple[Operation, ...]:
        """What to commit on top of `state`; none if there is nothing, or if only a newer state can tell."""
        try:
            operations = tuple(build(state))
            check(state, operations, reason)
        except PromptStoreError:
            if is_newest:
                raise
            return ()
        return operations

    def _draft(
        self, state: StoreState, operations: tuple[Operation, ...], reason: str, actor: str
    ) -> tuple[Commit, bytes | None]:
        """The commit after `state` as every reader will see it, and the checkpoint object it names, if any."""
        number = state.number + 1
        checkpoint = encode_checkpoint(state) if names_checkpoint(number) else None
        commit = Commit(
            number=number,
            id=self._new_id(),
            parent=state.digest,
            at=max(format_instant(self._clock()), state.at),
            actor=actor,
            reason=reason,
            operations=operations,
            checkpoint=None if checkpoint is None else sha256_hex(checkpoint),
        )
        if self._signer is not None:
            commit = self._signer.sign(commit)
        self._accept(commit)
        data = commit.to_bytes()
        if len(data) > MAX_COMMIT_BYTES:
            raise InvalidInputError(f"the commit has {len(data)} bytes, expected at most {MAX_COMMIT_BYTES}; split it")
        try:
            return Commit.from_bytes(data, number), checkpoint
        except CorruptError as error:
            raise InvalidInputError(f"no reader would accept this commit: {error}") from error

    def _append(self, base: StoreState, commit: Commit) -> tuple[StoreState, bool]:
        """Create `commit`; the newest state then known, and whether the commit is in the log.

        Only one commit can ever be at that number, so after a lost answer the same bytes are safe to send again: the
        outcome is known as soon as that commit can be read, whoever wrote it.
        """
        may_exist = False
        last: PromptStoreError | None = None
        for _ in self._patience.after_faults():
            try:
                if self.objects.put_if_absent(commit_key(commit.number), commit.to_bytes()):
                    return self._advance(fold(base, [commit])), True
                may_exist = True
            except StoreUnavailableError as error:
                last = error
            except CommitOutcomeUnknownError as error:
                may_exist, last = True, error
            try:
                winner = self._find(commit.number)
            except StoreUnavailableError as error:
                last = error
                continue
            if winner is not None:
                after = self._advance(fold(base, [winner]))
                return (after, True) if winner.id == commit.id else (self._follow(after), False)
        if may_exist:
            raise CommitOutcomeUnknownError(
                f"whether commit {commit.number} took effect could not be learnt ({last}); repeating is safe"
            ) from last
        raise StoreUnavailableError(f"commit {commit.number} was not made: {last}") from last

    def _prove(self) -> None:
        """Make sure, once, that the state this ledger was resumed from is of the log that is there, and follow that."""
        if self._is_proved:
            return
        state, found = self._state, None
        header = read_header(self.objects)
        if header == self.header:
            with suppress(NotFoundError):
                found = _digest_at(self.objects, header, state.number)
        if found != state.digest:
            raise UntrustedError(
                f"{self.objects.url} is not the store that this machine last saw, at commit {state.number} of store "
                f"{self.header.id}: it was replaced, rolled back or forked. If that was meant, start again: that "
                "says what to delete"
            )
        self._advance(_end_of_log(self.objects, header, lambda: state, self._accept, self._memory))
        self._is_proved = True

    def _find(self, number: int) -> Commit | None:
        """Commit `number`, if the log is that long."""
        try:
            commit = read_commit(self.objects, number)
        except NotFoundError:
            return None
        self._accept(commit)
        return commit

    def _follow(self, state: StoreState) -> StoreState:
        """The end of the log, coming from `state`."""
        for later, _ in follow(self.objects, state, self._accept):
            state = self._advance(later)
        return state

    def _advance(self, state: StoreState) -> StoreState:
        """Take note of a newer state; another thread may have seen a newer one yet."""
        with self._advancing:
            if state.number > self._state.number:
                self._state = state
                if self._memory is not None:
                    self._memory.save(self.objects.url, state)
        return state


def _end_of_log(
    objects: ObjectStore,
    header: StoreHeader,
    start: Callable[[], StoreState],
    accept: Accept,
    memory: HeadMemory | None,
) -> StoreState:
    """The state at the end of the log, followed from what `start` gives; refused if `memory` saw it go on otherwise."""
    seen = None if memory is None else memory.look(objects.url, header.id)
    state = start()
    for later, _ in follow(objects, state, accept):
        state = later
    if memory is not None and seen is not None:
        memory.check(objects.url, state, seen, lambda number: _digest_at(objects, header, number))
        memory.save(objects.url, state)
    return state


def _digest_at(objects: ObjectStore, header: StoreHeader, number: int) -> str:
    return header.digest if number == 0 else read_commit(objects, number).digest
