"""What a store holds: tasks, their versions and aliases. Values; `promptstore.core.fold` makes them from a log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptstore.core.ref import PromptRef
from promptstore.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class Attestation:
    """What was learnt about a version after publish, and who said so in which commit."""

    kind: str
    body: Mapping[str, Any]
    commit: int
    at: str
    actor: str


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """A task's version: dense number from 1 and the digest of its manifest; never changes but by `expire`.

    payload: digest of the prompt's own bytes.
    expired_in: number of the commit that expired it.
    """

    task: str
    number: int
    digest: str
    payload: str
    commit: int
    at: str
    actor: str
    attestations: tuple[Attestation, ...] = ()
    expired_in: int | None = None

    @property
    def is_expired(self) -> bool:
        return self.expired_in is not None

    @property
    def has_passed_gate(self) -> bool:
        """Whether the latest gate attestation says `pass`."""
        verdicts = [each.body.get("verdict") for each in self.attestations if each.kind == "gate"]
        return bool(verdicts) and verdicts[-1] == "pass"

    def __str__(self) -> str:
        return f"{self.task}:{self.number}"


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an alias; `before` or `after` is `None` where it did not exist."""

    task: str
    alias: str
    before: int | None
    after: int | None
    commit: int
    at: str
    actor: str
    reason: str
    forced: bool


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task's versions (index = number - 1), aliases, and every alias move in log order."""

    name: str
    versions: tuple[PromptVersion, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    moves: tuple[AliasMove, ...] = ()

    def version(self, number: int) -> PromptVersion:
        if not 1 <= number <= len(self.versions):
            raise NotFoundError(
                f"{self.name}:{number} does not exist; {self.name} has versions 1 to {len(self.versions)}"
            )
        return self.versions[number - 1]


@dataclass(frozen=True, slots=True)
class StoreState:
    """The fold of a log up to one commit; a value, safe to share between threads.

    number: of the last commit applied, 0 for an empty log.
    digest: SHA-256 of that commit's bytes, or of `store.json` for an empty log.
    at: time of that commit, "" for an empty log.
    condemned: by digest, the last commit that gave up its stored bytes; see `Condemn`.
    """

    store_id: str
    number: int
    digest: str
    at: str = ""
    protected_aliases: frozenset[str] = frozenset({"production"})
    tasks: Mapping[str, TaskState] = field(default_factory=dict)
    condemned: Mapping[str, int] = field(default_factory=dict)

    def task(self, name: str) -> TaskState:
        """Raises NotFoundError: no version of such a task was ever published."""
        try:
            return self.tasks[name]
        except KeyError:
            raise NotFoundError(f"task {name!r} is not in this store; `promptstore list` shows what is") from None

    def resolve(self, ref: PromptRef) -> PromptVersion:
        """The version that `ref` names now.

        Raises:
            NotFoundError: no such task, alias, number or digest, or the version is expired.
        """
        task = self.task(ref.task)
        if ref.alias is not None:
            if ref.alias not in task.aliases:
                known = ", ".join(sorted(task.aliases)) or "none yet"
                raise NotFoundError(
                    f"{ref.task} has no alias {ref.alias!r} (aliases: {known}); promote a version first"
                )
            return task.versions[task.aliases[ref.alias] - 1]
        if ref.number is not None:
            version = task.version(ref.number)
        else:
            matches = [each for each in task.versions if each.digest == ref.digest]
            if not matches:
                raise NotFoundError(f"{ref} is not a version of this store; `promptstore list {ref.task}` shows them")
            version = matches[-1]
        if version.is_expired:
            raise NotFoundError(f"{version} is expired; `promptstore list {ref.task}` shows the versions still kept")
        return version
