"""From the name in a request to a version that is held until the answer is out."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion
from promptstore.errors import IncompatibleModelError, NotFoundError, NotServingError
from promptstore.runtime.bank import PromptBank
from promptstore.serving.following import Follower
from promptstore.serving.lifecycle import Lifecycle
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.table import AliasTable, Target
from promptstore.serving.trials import Trial
from promptstore.store.store_threads import StoreThreads

# Requests that wait for the store at one time: others of its kind wait for them, and nothing else does.
_PULLS = 8


class Resolver:
    """Resolves refs once, at the start of a request: what moves later does not reach it."""

    def __init__(self, follower: Follower, bank: PromptBank[LoadedPrompt], tasks: frozenset[str] = frozenset()) -> None:
        self._follower = follower
        self._bank = bank
        self._tasks = tasks
        self._pulls = StoreThreads(_PULLS, "pull")
        self.lifecycle = Lifecycle()

    def close(self) -> None:
        """Begins no more pulls, once nothing is held."""
        self._pulls.close(within_s=0)

    @asynccontextmanager
    async def holding(self, text: str, caller: str = "", *, may_try: bool = True) -> AsyncIterator[Target]:
        """The version that `text` names, in memory until the context ends.

        caller: whose requests stay together when a version is on trial; each is drawn by itself if empty.
        may_try: a version on trial may be what an alias names; otherwise it is the one in place.

        Raises:
            InvalidInputError: not a ref. NotFoundError: no such task, version or alias, or it is not served here.
            IncompatibleModelError: it is for another base model. CorruptError: its bytes are damaged.
            NotServingError: the alias's first version cannot be served, or it must be pulled while the server drains
                and the store does not answer. StoreUnavailableError: it must be pulled and the store cannot be reached.
        """
        ref = PromptRef.parse(text)
        table = self._follower.table
        served = _drawn(ref, table, caller) if may_try else table.find(ref)
        if served is not None:
            self._bank.hold(served.prompt.digest, lambda: served.prompt)
            target = served
        else:
            target = await self._pulled(ref, table)
        try:
            yield target
        finally:
            self._bank.release(target.prompt.digest)

    def trial_of(self, target: Target) -> Trial | None:
        """The trial that `target` takes part in, in place or on trial."""
        found = self._follower.table.trials.get((target.version.task, target.alias or ""))
        return None if found is None else found[0]

    def in_place_of(self, target: Target) -> Target | None:
        """What answers the alias otherwise, if `target` is on trial for it."""
        trial = self.trial_of(target)
        if trial is None or trial.rollout.number != target.version.number:
            return None
        return self._follower.table.targets.get((target.version.task, target.alias or ""))

    def on_trial(self, target: Target) -> Target | None:
        """What is on trial for the alias that `target` was asked by."""
        found = self._follower.table.trials.get((target.version.task, target.alias or ""))
        return None if found is None else found[1]

    async def _pulled(self, ref: PromptRef, table: AliasTable) -> Target:
        if self._tasks and ref.task not in self._tasks:
            raise NotFoundError(f"task {ref.task!r} is not served here; this server serves {', '.join(self._tasks)}")
        version = table.state.resolve(ref)
        if ref.alias is not None:
            raise _why_not(ref, table)
        loaded = self._bank.hold_loaded(version.digest) or await self._hold_in_thread(ref, version)
        return Target(version, None, loaded)

    async def _hold_in_thread(self, ref: PromptRef, version: PromptVersion) -> LoadedPrompt:
        """Pulling blocks, so a thread does it; a request that ends meanwhile gives its hold back."""

        def hold() -> LoadedPrompt:
            return self._bank.hold(version.digest, lambda: self._follower.pull(ref, version))

        work = asyncio.wrap_future(self._pulls.submit(hold))
        try:
            return await self.lifecycle.stored(work)
        except (asyncio.CancelledError, NotServingError):
            work.add_done_callback(_releasing(self._bank, version.digest))
            raise


def _drawn(ref: PromptRef, table: AliasTable, caller: str) -> Target | None:
    """What answers an alias: the version on trial for its share of callers, else the one in place."""
    trial, target = table.trials.get((ref.task, ref.alias or ""), (None, None))
    if trial is not None and trial.takes(caller or secrets.token_hex(8)):
        return target
    return table.find(ref)


def _releasing(bank: PromptBank[LoadedPrompt], digest: str) -> "Callable[[asyncio.Future[LoadedPrompt]], None]":
    def release(work: "asyncio.Future[LoadedPrompt]") -> None:
        if not work.cancelled() and work.exception() is None:
            bank.release(digest)

    return release


def _why_not(ref: PromptRef, table: AliasTable) -> Exception:
    """Why an alias that is in the store is not served."""
    refusal = table.refused.get((ref.task, ref.alias or ""))
    if refusal is None:
        return NotServingError(f"{ref} is not loaded yet; repeat the request in a moment")
    if isinstance(refusal.error, IncompatibleModelError):
        return refusal.error
    return NotServingError(f"{ref} points at {refusal.version}, which this server refuses: {refusal.error}")
