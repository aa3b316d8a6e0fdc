"""Who may ask: API keys with scopes, and how often."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from promptstore.serving.api_keys import SCOPES, ApiKey, Scope, digest_key
from promptstore.serving.failures import RequestRefusedError

_CALLERS_REMEMBERED = 10_000
ANONYMOUS = ApiKey("anonymous", "", frozenset(SCOPES))


class Access:
    """Decides for each request, on one event loop.

    keys: all that are let in, so an empty list lets in nobody; `None` asks for no key and lets everybody in, with every
    scope. changed: asked for each request; new keys, or `None` if they are as before. anonymous_per_minute: bound per
    client address where no key is asked for. clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey] | None = None,
        *,
        changed: Callable[[], Iterable[ApiKey] | None] = lambda: None,
        anonymous_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = None if keys is None else _by_digest(keys)
        self._changed = changed
        self._anonymous_per_minute = anonymous_per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def asks_for_keys(self) -> bool:
        return self._keys is not None

    def admit(self, authorization: str | None, client: str, scope: Scope) -> ApiKey:
        """The caller's key.

        Raises:
            RequestRefusedError: 401 without a known key, 403 without the scope, 429 too often.
        """
        key = self._identify(authorization)
        if key is None:
            raise RequestRefusedError(
                401, "invalid_api_key", "send `Authorization: Bearer <key>` with a key known here"
            )
        if scope not in key.scopes:
            raise RequestRefusedError(403, "missing_scope", f"key {key.name!r} lacks the scope {scope!r}")
        per_minute = key.requests_per_minute if self.asks_for_keys else self._anonymous_per_minute
        caller = key.sha256 or client
        if per_minute is not None and not self._take_token(caller, per_minute):
            raise RequestRefusedError(429, "rate_limited", f"more than {per_minute} requests in a minute; slow down")
        return key

    def knows(self, authorization: str | None) -> bool:
        """Whether `admit` would let the caller in for something."""
        return self._identify(authorization) is not None

    def _identify(self, authorization: str | None) -> ApiKey | None:
        if (keys := self._changed()) is not None:
            self._keys = _by_digest(keys)
        if self._keys is None:
            return ANONYMOUS
        kind, _, value = (authorization or "").partition(" ")
        shown = value.strip() if kind.lower() == "bearer" else ""
        return self._keys.get(digest_key(shown)) if shown else None

    def _take_token(self, caller: str, per_minute: int) -> bool:
        """A bucket that holds a minute's worth of requests and refills evenly."""
        now = self._clock()
        left, then = self._buckets.pop(caller, (float(per_minute), now))
        left = min(float(per_minute), left + max(0.0, now - then) * per_minute / 60)
        is_allowed = left >= 1
        self._buckets[caller] = (left - is_allowed, now)
        while len(self._buckets) > _CALLERS_REMEMBERED:
            self._buckets.popitem(last=False)
        return is_allowed


def _by_digest(keys: Iterable[ApiKey]) -> dict[str, ApiKey]:
    return {key.sha256: key for key in keys}
