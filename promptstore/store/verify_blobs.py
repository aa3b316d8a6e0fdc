"""Checking every payload and manifest, and that every version has its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from promptstore.core.fold import needed_digests
from promptstore.core.manifest import Manifest, Payload
from promptstore.core.state import PromptVersion, StoreState
from promptstore.errors import CorruptError, NotFoundError
from promptstore.store.blobs import place_of
from promptstore.store.following import follow
from promptstore.store.layout import BlobKey
from promptstore.store.objects import ObjectInfo, ObjectStore
from promptstore.store.parallel import in_parallel
from promptstore.store.payload import check_payload
from promptstore.store.reading import read_digest
from promptstore.store.trust import accept_all
from promptstore.store.verify_problem import Problem


@dataclass(frozen=True, slots=True)
class _Described:
    """What a good manifest says."""

    task: str
    payload: Payload
    hidden_size: int


_Found = Payload | _Described | Problem | None


def check_blobs(
    objects: ObjectStore, listed: Mapping[str, ObjectInfo], state: StoreState | None, problems: list[Problem]
) -> list[ObjectInfo]:
    """The payloads and manifests of `listed` that no version of `state` needs; adds to `problems`."""
    infos = {blob: info for info in listed.values() if (blob := BlobKey.parse(info.key)) is not None}
    seen = dict(zip(infos, in_parallel(lambda blob: _look_at(objects, blob), infos), strict=True))
    problems.extend(found for found in seen.values() if isinstance(found, Problem))
    if state is None:
        return []
    problems.extend(_missing(objects, state, seen))
    problems.extend(_contradictions(state, seen))
    needed = needed_digests(state, {blob.digest for blob in infos})
    return [
        info
        for blob, info in infos.items()
        if blob.digest not in needed or blob.generation != state.condemned.get(blob.digest, 0)
    ]


def _look_at(objects: ObjectStore, blob: BlobKey) -> _Found:
    """What is at that place: what it says, what is wrong with it, or nothing any more."""
    try:
        data = read_digest(objects, str(blob), blob.digest)
        if blob.kind == "payload":
            shape = check_payload(data)
            return Payload(blob.digest, len(data), shape.tokens, shape.hidden, shape.ensemble)
        manifest = Manifest.from_bytes(data)
    except NotFoundError:
        return None
    except CorruptError as error:
        return Problem(str(blob), str(error), is_movable=True)
    return _Described(manifest.task.name, manifest.payload, manifest.fingerprint.hidden_size)


def _kept(state: StoreState) -> Iterator[PromptVersion]:
    return (version for task in state.tasks.values() for version in task.versions if not version.is_expired)


def _missing(objects: ObjectStore, state: StoreState, seen: Mapping[BlobKey, _Found]) -> Iterator[Problem]:
    newest = None
    for version in _kept(state):
        for blob in (place_of(state, "manifest", version.digest), place_of(state, "payload", version.payload)):
            if seen.get(blob) is not None:
                continue
            newest = newest or _newest(objects, state)
            # What expired since the listing may rightly have been collected since.
            if not newest.task(version.task).version(version.number).is_expired:
                yield Problem(str(blob), f"{version} needs this {blob.kind}, which is not in the store")


def _newest(objects: ObjectStore, state: StoreState) -> StoreState:
    try:
        for later, _ in follow(objects, state, accept_all):
            state = later
    except CorruptError:
        return state
    return state


def _contradictions(state: StoreState, seen: Mapping[BlobKey, _Found]) -> Iterator[Problem]:
    """Versions whose log entry, manifest and payload, each good by itself, do not agree."""
    for version in _kept(state):
        place = place_of(state, "manifest", version.digest)
        described = seen.get(place)
        payload = seen.get(place_of(state, "payload", version.payload))
        if not isinstance(described, _Described) or not isinstance(payload, Payload):
            continue
        if described != _Described(version.task, payload, payload.hidden_size):
            yield Problem(str(place), f"{version}: manifest, payload and log do not agree on task, payload or width")
