"""What people do with a store: publish, pull, promote, roll back, look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.manifest import Manifest, Provenance
from promptstore.core.operation import DeleteAlias, Expire, Operation
from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import AliasMove, PromptVersion, StoreState
from promptstore.core.task import TaskSpec
from promptstore.errors import ConflictError, CorruptError, NotFoundError
from promptstore.store.blobs import Blobs, place_of
from promptstore.store.cache import PromptCache
from promptstore.store.difference import Difference, manifest_differences, tensor_differences
from promptstore.store.ledger import Build, Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.payload import decode_payload
from promptstore.store.promotion import (
    ANY,
    Expected,
    Promotion,
    Statement,
    attest_operation,
    promotion_operations,
    rollback_target,
)
from promptstore.store.publication import Publication

Ref = PromptRef | str
UNKNOWN_PROVENANCE = Provenance()


@dataclass(frozen=True, slots=True)
class PulledPrompt:
    """A version with its bytes, verified against their digests."""

    version: PromptVersion
    manifest: Manifest
    prompt: SoftPrompt


class PromptStore:
    """One store, through its ledger. Every method blocks and may be called from many threads.

    Reads answer from the state last seen; `refresh` looks again, and every change looks before it is made.
    Changes raise as `Ledger.commit` does; after CommitOutcomeUnknownError, repeating one is safe.
    """

    def __init__(self, ledger: Ledger, objects: ObjectStore, *, cache: PromptCache | None = None) -> None:
        self.ledger = ledger
        self._blobs = Blobs(objects, cache)

    @property
    def state(self) -> StoreState:
        return self.ledger.state

    def refresh(self) -> StoreState:
        """Follow the log to its end: one GET when nothing is new."""
        return self.ledger.refresh()

    def resolve(self, ref: Ref) -> PromptVersion:
        """The version that `ref` named when the store was last looked at. No I/O.

        Raises:
            NotFoundError: no such task, alias, number or digest, or the version is expired.
        """
        return self.state.resolve(_parse(ref))

    def manifest(self, digest: str) -> Manifest:
        """The manifest with that digest.

        Raises:
            NotFoundError: it is not in the store. CorruptError: its bytes are damaged.
        """
        return Manifest.from_bytes(self._blobs.read(place_of(self.state, "manifest", digest)))

    def pull(self, ref: Ref, *, for_model: BaseModelFingerprint | None) -> PulledPrompt:
        """A version's prompt, checked against every digest on the way and against the model it is for.

        for_model: the model it will be used on; `None` to look at it without one.

        Raises:
            NotFoundError: as `resolve`. IncompatibleModelError: it was fitted to another model.
            CorruptError: the store does not hold what the log promises.
        """
        version = self.resolve(ref)
        try:
            pulled = self._read(version)
        except NotFoundError:
            # Expired and collected since the last look, perhaps, with the alias moved on before.
            self.refresh()
            pulled = self._read_promised(self.resolve(ref))
        if for_model is not None:
            pulled.manifest.fingerprint.require_match(for_model, str(pulled.version))
        return pulled

    def publish(
        self,
        prompt: SoftPrompt,
        task: TaskSpec,
        *,
        provenance: Provenance = UNKNOWN_PROVENANCE,
        metrics: Mapping[str, float] | None = None,
        alias: str | None = None,
        force: bool = False,
        reason: str = "",
        actor: str | None = None,
    ) -> PromptVersion:
        """Make `prompt` the next version of `task`: payload and manifest, then the commit that names them.

        The same prompt, task, provenance and metrics give the same manifest, and publishing that again while it is
        not expired gives the version it already is.

        alias: points at the version in the same commit, so that nobody sees one without the other. force: as in
        `promote`; a protected alias needs it here, because no gate has judged what is not yet published.

        Raises:
            RefusedError: the alias is protected, without `force` and a reason; then nothing is published.
        """
        publication = Publication(prompt, task, provenance, dict(metrics or {}), alias=alias, force=force)
        return publication.publish(self.ledger, self._blobs, reason, actor)

    def promote(
        self,
        ref: Ref,
        alias: str = DEFAULT_ALIAS,
        *,
        expected: Expected = ANY,
        reason: str = "",
        force: bool = False,
        actor: str | None = None,
    ) -> PromptVersion:
        """Point `alias` at a version, if it points at `expected` now; nothing changes if it points there already.

        force: move a protected alias to a version without a passing gate; needs a reason, which the log keeps.

        Raises:
            ConflictError: the alias points elsewhere: look at `history` and decide again.
            RefusedError: the alias is protected and the version has no passing gate.
        """
        promotion = Promotion(_parse(ref), alias, expected, force)
        return self.release([promotion], reason=reason, actor=actor)[0]

    def release(
        self, promotions: Sequence[Promotion], *, reason: str = "", actor: str | None = None
    ) -> list[PromptVersion]:
        """Make all the moves and statements in one commit: readers see all of them or none. Raises as `promote`."""

        def build(state: StoreState) -> list[Operation]:
            return [operation for each in promotions for operation in promotion_operations(state, each)]

        return self._change(build, [each.ref for each in promotions], reason, actor)

    def rollback(
        self,
        task: str,
        alias: str = DEFAULT_ALIAS,
        *,
        reason: str = "",
        to: int | None = None,
        actor: str | None = None,
    ) -> PromptVersion:
        """Point `alias` at the version it pointed at before, or at version `to`, which it pointed at once.

        A protected alias goes back too, whatever the gate said: what it pointed at was let in by a gate or by force.

        After CommitOutcomeUnknownError look before repeating, or give `to`: two rollbacks go back by two.

        Raises:
            NotFoundError: there is no alias, no earlier version that is still kept, or it never pointed at `to`.
        """

        target = PromptRef(task, alias=alias)

        def build(state: StoreState) -> list[Operation]:
            nonlocal target
            current = state.task(task)
            target = PromptRef(task, number=rollback_target(current, alias, to))
            version = state.resolve(target)
            force = alias in state.protected_aliases and not version.has_passed_gate
            return promotion_operations(state, Promotion(target, alias, force=force))

        self.ledger.commit(build, reason=reason, actor=actor)
        return _with_expired(self.state, target)

    def attest(
        self, ref: Ref, kind: str, body: Mapping[str, Any], *, reason: str = "", actor: str | None = None
    ) -> PromptVersion:
        """Say something about a version: an evaluation, a gate's verdict, an approval. Saying it again adds nothing.

        body: small JSON. A gate's holds `verdict`: `pass` or `fail`.
        """

        def build(state: StoreState) -> list[Operation]:
            said = attest_operation(state.resolve(_parse(ref)), Statement(kind, body))
            return [said] if said else []

        return self._change(build, [_parse(ref)], reason, actor)[0]

    def delete_alias(
        self, task: str, alias: str, *, expected: Expected = ANY, reason: str = "", actor: str | None = None
    ) -> None:
        """Remove `alias`; the versions stay.

        Raises:
            NotFoundError: there is no such alias. ConflictError: it does not point at `expected`.
        """

        def build(state: StoreState) -> list[Operation]:
            current = state.resolve(PromptRef(task, alias=alias)).number
            if expected is not ANY and current != expected:
                raise ConflictError(f"{task}@{alias} points at version {current}, expected {expected}; decide again")
            return [DeleteAlias(task, alias, current)]

        self.ledger.commit(build, reason=reason, actor=actor)

    def expire(self, refs: Sequence[Ref], *, reason: str = "", actor: str | None = None) -> list[PromptVersion]:
        """Un-name versions; garbage collection deletes their bytes later. Expiring one again changes nothing.

        Raises:
            RefusedError: an alias points at one of them: move it first. Nothing was changed.
        """
        wanted = [_parse(ref) for ref in refs]

        def build(state: StoreState) -> list[Operation]:
            found = {(each.task, each.number): each for each in (_with_expired(state, ref) for ref in wanted)}
            return [Expire(each.task, each.number) for each in found.values() if not each.is_expired]

        self.ledger.commit(build, reason=reason, actor=actor)
        return [_with_expired(self.state, ref) for ref in wanted]

    def history(self, task: str | None = None) -> list[AliasMove]:
        """Every move of every alias, of one task or of all, oldest first. From the state last seen."""
        tasks = list(self.state.tasks.values()) if task is None else [self.state.task(task)]
        return sorted((move for each in tasks for move in each.moves), key=lambda move: move.commit)

    def at(self, moment: datetime) -> StoreState:
        """The store as it was at `moment`, from the log alone: the state after the last commit dated so or before."""
        return self.ledger.state_at(moment)

    def diff(self, before: Ref, after: Ref) -> list[Difference]:
        """How two versions differ: model, task, metrics, provenance, and how far apart their embeddings are."""
        old, new = self.pull(before, for_model=None), self.pull(after, for_model=None)
        return [*manifest_differences(old.manifest, new.manifest), *tensor_differences(old.prompt, new.prompt)]

    def _change(self, build: Build, refs: Sequence[PromptRef], reason: str, actor: str | None) -> list[PromptVersion]:
        """Commit, then the versions that `refs` named in the state the commit was built on."""
        numbers: list[PromptRef] = []

        def build_and_note(state: StoreState) -> Sequence[Operation]:
            operations = build(state)
            numbers[:] = [PromptRef(ref.task, number=state.resolve(ref).number) for ref in refs]
            return operations

        self.ledger.commit(build_and_note, reason=reason, actor=actor)
        return [_with_expired(self.state, ref) for ref in numbers]

    def _read_promised(self, version: PromptVersion) -> PulledPrompt:
        try:
            return self._read(version)
        except NotFoundError as error:
            raise CorruptError(f"{version} is in the log but its bytes are not in the store: {error}") from error

    def _read(self, version: PromptVersion) -> PulledPrompt:
        manifest = self.manifest(version.digest)
        if (manifest.task.name, manifest.payload.digest) != (version.task, version.payload):
            raise CorruptError(f"{version}: the manifest is of another task or payload than the log says")
        data = self._blobs.read(place_of(self.state, "payload", version.payload))
        return PulledPrompt(version, manifest, decode_payload(data, manifest.fingerprint))


def _parse(ref: Ref) -> PromptRef:
    return PromptRef.parse(ref) if isinstance(ref, str) else ref


def _with_expired(state: StoreState, ref: PromptRef) -> PromptVersion:
    """As `StoreState.resolve`, but an expired version, named by number, is found too."""
    return state.resolve(ref) if ref.number is None else state.task(ref.task).version(ref.number)
