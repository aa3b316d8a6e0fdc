"""An object store in a dict: for tests and notebooks. It keeps the same contract as the real ones."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from threading import Lock

from promptstore.errors import NotFoundError
from promptstore.objects.keys import check_key
from promptstore.store.objects import ObjectInfo


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryObjectStore:
    """Objects of one process; gone with it. clock: the store's clock, for tests of grace periods."""

    def __init__(self, name: str = "anonymous", *, clock: Callable[[], datetime] = _now) -> None:
        self._name = name
        self._clock = clock
        self._lock = Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    @property
    def url(self) -> str:
        return f"memory://{self._name}"

    def get(self, key: str) -> bytes:
        check_key(key)
        with self._lock:
            if key not in self._objects:
                raise NotFoundError(f"{self.url}/{key} does not exist")
            return self._objects[key][0]

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        with self._lock:
            self._objects[key] = (bytes(data), self._clock())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        check_key(key)
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = (bytes(data), self._clock())
            return True

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            found = [
                ObjectInfo(key, len(data), modified_at)
                for key, (data, modified_at) in self._objects.items()
                if key.startswith(prefix) and key > start_after
            ]
        return iter(sorted(found, key=lambda each: each.key.encode()))

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)


_shared: dict[str, MemoryObjectStore] = {}
_shared_lock = Lock()


def shared_memory_store(name: str) -> MemoryObjectStore:
    """The store that everybody in this process who asks for `name` gets: what `memory://name` means."""
    with _shared_lock:
        return _shared.setdefault(name, MemoryObjectStore(name))
