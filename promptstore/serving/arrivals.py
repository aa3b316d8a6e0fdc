"""Versions on their way from the store to the device, each at its own pace."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait

from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion
from promptstore.errors import (
    CorruptError,
    IncompatibleModelError,
    InvalidInputError,
    NotFoundError,
)
from promptstore.runtime.bank import PromptBank
from promptstore.serving.loaded import LoadedPrompt
from promptstore.serving.table import AliasKey, Refusal, Target
from promptstore.store.store_threads import StoreThreads

# Behind an alias's name: what is on trial for it. No alias can be named so.
TRIAL = "/trial"
# Behind it, what stands in for what it points at.
BEFORE = "/before"
PULLS_AT_ONCE = 8
# Damaged or missing bytes may be put right from a copy, under the same name.
MENDED_AFTER_S = 60.0
# How long the end waits for pulls under way; a store that hangs keeps them for minutes.
CLOSE_WITHIN_S = 2.0

Made = Target | Refusal


class Arrivals:
    """What aliases are to mean and do not mean yet: pulled, pinned in the bank, put on the device, or refused.

    pull, prepare: as in `Follower`. For one thread, but for `close`.
    """

    def __init__(
        self,
        bank: PromptBank[LoadedPrompt],
        pull: Callable[[PromptRef, PromptVersion], LoadedPrompt],
        prepare: Callable[[str], Future[object]],
        clock: Callable[[], float],
    ) -> None:
        self._bank = bank
        self._pull = pull
        self._prepare = prepare
        self._clock = clock
        self._pulling = StoreThreads(PULLS_AT_ONCE, "pull")
        self._coming: dict[AliasKey, tuple[PromptVersion, Future[Made]]] = {}

    def collect(
        self, wanted: Mapping[AliasKey, PromptVersion], *, within_s: float | None, is_first: bool = False
    ) -> dict[AliasKey, Made]:
        """Those of `wanted` that are there, or refused; the rest stays on its way, unless the next call wants others.

        within_s: how long to wait for what is new, `None` for as long as it takes; nothing waits for what an earlier
            call waited for in vain.
        is_first: the device is not waited for.
        """
        self._forget(key for key, (version, _) in self._coming.items() if not _is_same(wanted.get(key), version))
        new = [key for key in wanted if key not in self._coming]
        for key in new:
            self._coming[key] = wanted[key], self._begin(key, wanted[key], waits_for_device=not is_first)
        wait([self._coming[key][1] for key in new], timeout=within_s)
        come = [key for key, (_, arrival) in self._coming.items() if arrival.done()]
        return {key: self._coming.pop(key)[1].result() for key in come}

    def close(self) -> None:
        self._pulling.close(within_s=CLOSE_WITHIN_S)

    def _begin(self, key: AliasKey, version: PromptVersion, *, waits_for_device: bool) -> Future[Made]:
        arrival: Future[Made] = Future()

        def bring() -> None:
            made = self._make(key, version)
            if isinstance(made, Refusal):
                arrival.set_result(made)
                return
            preparing = self._prepare(made.prompt.digest)
            if waits_for_device:
                preparing.add_done_callback(lambda done: arrival.set_result(self._prepared(made, done)))
            else:
                arrival.set_result(made)

        self._pulling.submit(bring)
        return arrival

    def _make(self, key: AliasKey, version: PromptVersion) -> Made:
        """The target that `key` is to have, pinned in the bank; or why not."""
        ref = PromptRef(version.task, number=version.number)
        try:
            prompt = self._bank.hold(version.digest, lambda: self._pull(ref, version), pin=True)
        except (CorruptError, NotFoundError) as error:
            return Refusal(version, error, retry_at=self._clock() + MENDED_AFTER_S)
        except (IncompatibleModelError, InvalidInputError) as error:
            return Refusal(version, error)
        except Exception as error:  # noqa: BLE001 - one version must not keep the others from being followed
            return Refusal(version, error, retry_at=self._clock())
        return Target(version, key[1].partition("/")[0], prompt)

    def _prepared(self, target: Target, done: Future[object]) -> Made:
        """`target`, now that it is on the device; or why it cannot be put there."""
        error = done.exception()
        if error is None:
            return target
        self._bank.release(target.prompt.digest, pin=True)
        return Refusal(target.version, error, retry_at=self._clock())

    def _forget(self, keys: Iterable[AliasKey]) -> None:
        for key in list(keys):
            self._coming.pop(key)[1].add_done_callback(self._give_back)

    def _give_back(self, arrival: Future[Made]) -> None:
        if isinstance(made := arrival.result(), Target):
            self._bank.release(made.prompt.digest, pin=True)


def _is_same(wanted: PromptVersion | None, version: PromptVersion) -> bool:
    return wanted is not None and (wanted.number, wanted.digest) == (version.number, version.digest)
