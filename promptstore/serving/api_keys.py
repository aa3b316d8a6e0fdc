"""API keys, and the file that holds what is known of them. Needs no web framework: keys are made where none is."""

import hashlib
import logging
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from promptstore.core.digest import DIGEST_PATTERN
from promptstore.core.name import check_key_name
from promptstore.errors import ConflictError, InvalidInputError
from promptstore.store.file_lock import FileLock
from promptstore.store.files import write_atomically

Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "admin")
_LOOKS_EVERY_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key by its digest; the key itself is kept nowhere. requests_per_minute: `None` is no bound."""

    name: str
    sha256: str
    scopes: frozenset[Scope]
    requests_per_minute: int | None = None


def digest_key(key: str) -> str:
    """What a key file holds of a key. A key is long and random, so a plain digest is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return f"ps-{secrets.token_urlsafe(32)}"


def scopes_named(names: Iterable[object]) -> frozenset[Scope]:
    """Raises InvalidInputError: a name is no scope, or there is none."""
    listed = list(names)
    found = frozenset(scope for scope in SCOPES if scope in listed)
    if not found or not all(name in SCOPES for name in listed):
        raise InvalidInputError(f"scopes is {listed!r}, expected one or more of {', '.join(SCOPES)}")
    return found


def key_table(key: ApiKey) -> str:
    """The `[[key]]` table of a key file.

    Raises:
        InvalidInputError: the key's name may not stand there.
    """
    check_key_name(key.name)
    scopes = ", ".join(f'"{scope}"' for scope in SCOPES if scope in key.scopes)
    lines = ["[[key]]", f'name = "{key.name}"', f'sha256 = "{key.sha256}"', f"scopes = [{scopes}]"]
    if key.requests_per_minute is not None:
        lines.append(f"requests_per_minute = {key.requests_per_minute}")
    return "".join(f"{line}\n" for line in lines)


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a TOML file: `[[key]]` tables with name, sha256, scopes and, optionally, requests_per_minute. A file
    that says nothing holds none: it is what taking back the last key leaves.

    Raises:
        InvalidInputError: the file is missing or malformed; the message says where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"key file {path}: {error}") from error
    return _keys_in(data, path)


def add_key(path: Path, key: ApiKey) -> None:
    """Appends a key to a key file, which is made for its owner alone if there is none. What was there stays, byte for
    byte, and so do the file's mode and owner. A server that uses the file sees it without the new key or with it.

    Raises:
        InvalidInputError: the file is malformed or has a key of this name, or the name may not stand there.
        ConflictError: another process adds a key at this moment; repeat.
        OSError: the file cannot be read or written; it is as it was.
    """
    table = key_table(key)
    path = path.resolve()  # of a symbolic link, what it leads to is replaced and not the link
    if path.is_dir():
        raise InvalidInputError(f"key file {path} is a folder; name a file")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    if not lock.take("adds an API key"):
        raise ConflictError(f"key file {path} is being changed by {lock.holder() or 'another process'}; repeat this")
    try:
        before = path.read_bytes() if path.exists() else b""
        held = _keys_in(before, path)
        if any(each.name == key.name for each in held):
            raise InvalidInputError(
                f"key file {path} has a key {key.name!r} already; choose another name, or take that key back first by "
                "deleting its [[key]] table"
            )
        write_atomically(path, _appended(before, table, path), keeps_mode=True)
    finally:
        lock.give_back()


class KeyFile:
    """A key file that may change while it is in use, so that a key can be taken back without a restart.

    Raises as `read_keys` when it is made; later, a file that cannot be read leaves the keys as they were, and the log
    says so. One that can be read and holds no key leaves none.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._mark = self._look()
        self._looked_at = clock()
        self.keys = read_keys(path)

    def changed(self) -> list[ApiKey] | None:
        """All keys, if the file is another than at the last call; looks at it every five seconds at most."""
        if self._clock() - self._looked_at < _LOOKS_EVERY_S:
            return None
        self._looked_at = self._clock()
        if (mark := self._look()) == self._mark:
            return None
        self._mark = mark
        try:
            self.keys = read_keys(self._path)
        except InvalidInputError as error:
            logger.warning("API keys stay as they were: %s", error)
            return None
        logger.info("API keys were read again: %d", len(self.keys))
        self.warn_of_none()
        return self.keys

    def warn_of_none(self) -> None:
        """Says in the log that nobody may ask, if that is so."""
        if not self.keys:
            logger.warning("key file %s holds no key: nobody may ask until it does", self._path)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _keys_in(data: bytes, path: Path) -> list[ApiKey]:
    try:
        document = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"key file {path}: {error}") from error
    tables = document.get("key", [])
    # Another name, `[[keys]]`, is a slip: taken for a file without keys, it would turn everybody away.
    if not isinstance(tables, list) or not set(document) <= {"key"}:
        raise InvalidInputError(
            f"key file {path}: expected [[key]] tables alone, with name, sha256 and scopes; "
            "`promptstore keys api` makes them"
        )
    return [_key(table, f"key file {path}, key {number}") for number, table in enumerate(tables, start=1)]


def _appended(before: bytes, table: str, path: Path) -> bytes:
    """The whole file with one more table, which TOML allows only behind other [[key]] tables."""
    gap = b"" if not before.strip() else b"\n" if before.endswith(b"\n") else b"\n\n"
    after = before + gap + table.encode()
    try:
        tomllib.loads(after.decode())
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(
            f"key file {path} cannot take another table ({error}); write each of its keys as a [[key]] table, then "
            "repeat"
        ) from error
    return after


def _key(table: Any, where: str) -> ApiKey:
    known = {"name", "sha256", "scopes", "requests_per_minute"}
    if not isinstance(table, dict) or not {"name", "sha256", "scopes"} <= set(table) <= known:
        raise InvalidInputError(f"{where}: expected name, sha256, scopes and, optionally, requests_per_minute")
    scopes, bound = table["scopes"], table.get("requests_per_minute")
    try:
        allowed = scopes_named(scopes if isinstance(scopes, list) else [scopes])
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    if not DIGEST_PATTERN.fullmatch(str(table["sha256"])):
        raise InvalidInputError(f"{where}: sha256 must be 64 hexadecimal digits, the SHA-256 of the key")
    if table["sha256"] == digest_key(""):
        raise InvalidInputError(f"{where}: sha256 is that of no key at all; make one with `promptstore keys api`")
    if bound is not None and (not isinstance(bound, int) or bound < 1):
        raise InvalidInputError(f"{where}: requests_per_minute is {bound!r}, expected a whole number from 1")
    return ApiKey(str(table["name"]), str(table["sha256"]), allowed, bound)
