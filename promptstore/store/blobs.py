"""Payloads and manifests in an object store, by digest."""

from collections.abc import Mapping

from promptstore.core.state import StoreState
from promptstore.store.cache import PromptCache
from promptstore.store.layout import BlobKey, BlobKind
from promptstore.store.objects import ObjectStore
from promptstore.store.parallel import in_parallel
from promptstore.store.reading import read_digest


def place_of(state: StoreState, kind: BlobKind, digest: str) -> BlobKey:
    """Where the bytes of `digest` are, or go, according to `state`: a digest once condemned has a new place."""
    return BlobKey(kind, digest, state.condemned.get(digest, 0))


class Blobs:
    """Reads through a local cache; every read is checked against its digest, cached or not."""

    def __init__(self, objects: ObjectStore, cache: PromptCache | None) -> None:
        self._objects = objects
        self._cache = cache

    def write(self, contents: Mapping[BlobKey, bytes]) -> None:
        """Store bytes, all at a time, each at the place of its digest; return, or raise, once none is on its way."""
        for _ in in_parallel(lambda item: self._objects.put(str(item[0]), item[1]), contents.items()):
            pass

    def read(self, place: BlobKey) -> bytes:
        """The bytes at a place.

        Raises:
            NotFoundError: nothing is there. CorruptError: something else is.
        """
        cached = self._cache.get(place.digest) if self._cache else None
        if cached is not None:
            return cached
        data = read_digest(self._objects, str(place), place.digest)
        if self._cache:
            self._cache.put(place.digest, data)
        return data
