"""Publishing one version: bytes first, name second."""

from functools import partial

from promptstore.core.commit import Commit
from promptstore.core.digest import sha256_hex
from promptstore.core.manifest import Manifest, Payload, Provenance
from promptstore.core.operation import Operation, Publish
from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.core.state import PromptVersion, StoreState
from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError, PromptStoreError
from promptstore.store.blobs import Blobs, place_of
from promptstore.store.layout import BlobKey
from promptstore.store.ledger import Ledger
from promptstore.store.payload import encode_payload
from promptstore.store.promotion import Promotion, move_operations


class Publication:
    """A prompt on its way to becoming a version: its bytes, its manifest, and where they were written."""

    def __init__(
        self,
        prompt: SoftPrompt,
        task: TaskSpec,
        provenance: Provenance,
        metrics: dict[str, float],
        *,
        alias: str | None = None,
        force: bool = False,
    ) -> None:
        """alias: is to point at the version, from the same commit on; force: as in `PromptStore.promote`."""
        self._alias = alias
        self._force = force
        self._payload = encode_payload(prompt)
        described = Payload(
            digest=sha256_hex(self._payload),
            payload_bytes=len(self._payload),
            num_virtual_tokens=prompt.num_virtual_tokens,
            hidden_size=prompt.hidden_size,
            ensemble=prompt.ensemble,
        )
        self._manifest = Manifest(described, prompt.fingerprint, task, provenance, metrics)
        self._manifest_bytes = _checked(self._manifest)
        self._digest = sha256_hex(self._manifest_bytes)

    def publish(self, ledger: Ledger, blobs: Blobs, reason: str, actor: str | None) -> PromptVersion:
        """The version; an existing one if the same manifest is one already.

        Two puts at a time, then a commit. The bytes are written even where the version exists, so that publishing
        again mends what was lost; and once more, to their new place, if they are condemned before the commit is made.
        """
        while True:
            places = self._places(ledger.state)
            blobs.write(dict(zip(places, (self._payload, self._manifest_bytes), strict=True)))
            try:
                commit = ledger.commit(partial(self._operations, places), reason=reason, actor=actor)
            except _BytesMissingError:
                continue
            return self._published(ledger.state, commit)

    def _operations(self, written: tuple[BlobKey, BlobKey], state: StoreState) -> list[Operation]:
        if (version := self._version(state)) is not None:
            return self._move(state, version)
        if self._places(state) != written:
            raise _BytesMissingError("the bytes are not where a new version needs them")
        task, payload = self._manifest.task.name, self._manifest.payload.digest
        number = len(state.tasks[task].versions) + 1 if task in state.tasks else 1
        coming = PromptVersion(task, number, self._digest, payload, commit=state.number + 1, at="", actor="")
        return [Publish(task, number, self._digest, payload), *self._move(state, coming)]

    def _move(self, state: StoreState, version: PromptVersion) -> list[Operation]:
        if self._alias is None:
            return []
        ref = PromptRef(version.task, number=version.number)
        return move_operations(state, version, Promotion(ref, self._alias, force=self._force))

    def _places(self, state: StoreState) -> tuple[BlobKey, BlobKey]:
        return place_of(state, "payload", self._manifest.payload.digest), place_of(state, "manifest", self._digest)

    def _version(self, state: StoreState) -> PromptVersion | None:
        """The version that this manifest is in `state` already."""
        task = state.tasks.get(self._manifest.task.name)
        kept = [each for each in task.versions if each.digest == self._digest and not each.is_expired] if task else []
        return kept[-1] if kept else None

    def _published(self, state: StoreState, commit: Commit | None) -> PromptVersion:
        """The version that `commit` made, or that was there without it."""
        task = state.task(self._manifest.task.name)
        made = [each for each in task.versions if commit is not None and each.commit == commit.number]
        version = made[0] if made else self._version(state)
        if version is None:
            raise NotFoundError(f"version of {task.name} with digest {self._digest[:12]} was expired just now")
        return version


class _BytesMissingError(PromptStoreError):
    """Raised while a commit is built, to write the bytes and build it again."""


def _checked(manifest: Manifest) -> bytes:
    data = manifest.to_bytes()
    try:
        Manifest.from_bytes(data)
    except CorruptError as error:
        raise InvalidInputError(f"no reader would accept this manifest: {error}") from error
    return data
