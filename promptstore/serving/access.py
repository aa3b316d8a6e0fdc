"""Who may ask: API keys with scopes, and how often."""

import hashlib
import logging
import secrets
import time
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptstore.core.digest import DIGEST_PATTERN
from promptstore.errors import InvalidInputError
from promptstore.serving.failures import RequestRefusedError

Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "admin")
_CALLERS_REMEMBERED = 10_000
_LOOKS_EVERY_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key by its digest; the key itself is kept nowhere. requests_per_minute: `None` is no bound."""

    name: str
    sha256: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None


ANONYMOUS = ApiKey("anonymous", "", frozenset(SCOPES))


def digest_key(key: str) -> str:
    """What a key file holds of a key. A key is long and random, so a plain digest is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return f"ps-{secrets.token_urlsafe(32)}"


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a TOML file: `[[key]]` tables with name, sha256, scopes and, optionally, requests_per_minute.

    Raises:
        InvalidInputError: the file is missing or malformed; the message says where.
    """
    try:
        tables = tomllib.loads(path.read_text()).get("key", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"key file {path}: {error}") from error
    if not isinstance(tables, list) or not tables:
        raise InvalidInputError(f"key file {path}: expected [[key]] tables with name, sha256 and scopes")
    return [_key(table, f"key file {path}, key {number}") for number, table in enumerate(tables, start=1)]


class KeyFile:
    """A key file that may change while it is in use, so that a key can be taken back without a restart.

    always: keys that are not in the file. Raises as `read_keys` when it is made; later, a file that cannot be read
    leaves the keys as they were, and the log says so.
    """

    def __init__(
        self, path: Path, always: Iterable[ApiKey] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._always = list(always)
        self._clock = clock
        self._mark = self._look()
        self._looked_at = clock()
        self.keys = [*read_keys(path), *self._always]

    def changed(self) -> list[ApiKey] | None:
        """All keys, if the file is another than at the last call; looks at it every five seconds at most."""
        if self._clock() - self._looked_at < _LOOKS_EVERY_S:
            return None
        self._looked_at = self._clock()
        if (mark := self._look()) == self._mark:
            return None
        self._mark = mark
        try:
            self.keys = [*read_keys(self._path), *self._always]
        except InvalidInputError as error:
            logger.warning("API keys stay as they were: %s", error)
            return None
        logger.info("API keys were read again: %d", len(self.keys))
        return self.keys

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


class Access:
    """Decides for each request, on one event loop. keys: empty lets everybody in, with every scope.

    changed: asked for each request; new keys, or `None` if they are as before. anonymous_per_minute: bound per client
    address where there are no keys. clock: monotonic seconds.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey] = (),
        *,
        changed: Callable[[], Iterable[ApiKey] | None] = lambda: None,
        anonymous_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = {key.sha256: key for key in keys}
        self._changed = changed
        self._anonymous_per_minute = anonymous_per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def asks_for_keys(self) -> bool:
        return bool(self._keys)

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
        per_minute = key.requests_per_minute if self._keys else self._anonymous_per_minute
        caller = key.sha256 or client
        if per_minute is not None and not self._take_token(caller, per_minute):
            raise RequestRefusedError(429, "rate_limited", f"more than {per_minute} requests in a minute; slow down")
        return key

    def knows(self, authorization: str | None) -> bool:
        """Whether `admit` would let the caller in for something."""
        return self._identify(authorization) is not None

    def _identify(self, authorization: str | None) -> ApiKey | None:
        if (keys := self._changed()) is not None:
            self._keys = {key.sha256: key for key in keys}
        if not self._keys:
            return ANONYMOUS
        kind, _, value = (authorization or "").partition(" ")
        return self._keys.get(digest_key(value.strip())) if kind.lower() == "bearer" else None

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


def _key(table: Any, where: str) -> ApiKey:
    known = {"name", "sha256", "scopes", "requests_per_minute"}
    if not isinstance(table, dict) or not {"name", "sha256", "scopes"} <= set(table) <= known:
        raise InvalidInputError(f"{where}: expected name, sha256, scopes and, optionally, requests_per_minute")
    scopes, bound = table["scopes"], table.get("requests_per_minute")
    if not isinstance(scopes, list) or not scopes or not set(scopes) <= set(SCOPES):
        raise InvalidInputError(f"{where}: scopes is {scopes!r}, expected a list of {', '.join(SCOPES)}")
    if not DIGEST_PATTERN.fullmatch(str(table["sha256"])):
        raise InvalidInputError(f"{where}: sha256 must be 64 hexadecimal digits, the SHA-256 of the key")
    if bound is not None and (not isinstance(bound, int) or bound < 1):
        raise InvalidInputError(f"{where}: requests_per_minute is {bound!r}, expected a whole number from 1")
    return ApiKey(str(table["name"]), str(table["sha256"]), frozenset(scopes), bound)
