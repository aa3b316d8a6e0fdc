"""What this machine has seen of each store, so that a store cannot go back in time unnoticed."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from promptstore.core.digest import canonical_json, parse_json
from promptstore.core.fields import Fields
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError, UntrustedError
from promptstore.store.files import write_atomically

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Head:
    """The last commit seen of a store; number 0 and the digest of `store.json` before the first."""

    store_id: str
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What was remembered before the log was read: the last head seen at the URL, and that of the store."""

    at_url: Head | None
    of_store: Head | None


class HeadMemory:
    """Heads in small files of one folder, one per store id and one per URL. Many processes may share the folder.

    Two processes that save at the same moment may leave the older of two heads: the next save mends it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def look(self, url: str, store_id: str) -> Seen:
        """What is remembered now. Look before reading the log: what others see meanwhile may be past where that ended.

        Raises:
            CorruptError: a note is damaged.
        """
        return Seen(_load(self._url_file(url)), _load(self._store_file(store_id)))

    def check(self, url: str, state: StoreState, seen: Seen, digest_of: Callable[[int], str]) -> None:
        """Refuse a store that is not a continuation of what was seen before, by its URL or by its id.

        state: the end of the log, read after `look`. digest_of: the digest of an earlier commit of that log.

        Raises:
            UntrustedError: the log ends before a commit seen earlier, forks from it, or is that of another store.
        """
        at_url, head = seen.at_url, seen.of_store
        if at_url is not None and at_url.store_id != state.store_id:
            raise UntrustedError(
                f"{url} held store {at_url.store_id} when this machine last saw it, now it holds {state.store_id}: "
                f"it was replaced. If that was meant, delete {self._url_file(url)}"
            )
        if head is None:
            return
        advice = f"it was rolled back or forked. If that was meant, delete {self._store_file(state.store_id)}"
        if state.number < head.number:
            raise UntrustedError(f"{url} ends at commit {state.number}, but commit {head.number} was seen: {advice}")
        digest = state.digest if state.number == head.number else digest_of(head.number)
        if digest != head.digest:
            raise UntrustedError(
                f"{url}: commit {head.number} is {digest[:12]}, but was {head.digest[:12]} when last seen: {advice}"
            )

    def save(self, url: str, state: StoreState) -> None:
        """Remember `state` as seen, unless a later one is. A disk that takes nothing is logged and stops nobody."""
        head = Head(state.store_id, state.number, state.digest)
        try:
            seen = _load(self._store_file(state.store_id))
            if seen is None or seen.number < head.number:
                _save(self._store_file(state.store_id), head)
            if _load(self._url_file(url)) is None:
                _save(self._url_file(url), head)
        except (OSError, CorruptError) as error:
            _log.warning("%s: commit %d is not remembered as seen: %s", url, state.number, error)

    def _store_file(self, store_id: str) -> Path:
        return self._folder / f"store-{_short(store_id)}.json"

    def _url_file(self, url: str) -> Path:
        return self._folder / f"url-{_short(url)}.json"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load(path: Path) -> Head | None:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not data:  # the machine crashed within moments of the save
        return None
    try:
        fields = Fields(parse_json(data, str(path)), str(path))
        head = Head(fields.text("store_id"), fields.integer("number"), fields.digest("digest"))
        fields.done()
    except CorruptError as error:
        raise CorruptError(f"{error}. It is this machine's note of what it saw: delete it to begin anew") from error
    return head


def _save(path: Path, head: Head) -> None:
    data = canonical_json({"store_id": head.store_id, "number": head.number, "digest": head.digest})
    # Not durable: waiting for the disk would cost every commit more than the store itself does.
    write_atomically(path, data, is_durable=False)
