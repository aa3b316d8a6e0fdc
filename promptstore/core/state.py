"""What a log means: the fold of its commits. Writers and readers apply the same rules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from promptstore.core.commit import Commit
from promptstore.core.operation import Attest, DeleteAlias, Expire, MoveAlias, Operation, Publish
from promptstore.core.ref import PromptRef
from promptstore.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError, RefusedError


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
    """A task's version: dense number from 1 and the digest of its manifest; never changes but by `expire`."""

    task: str
    number: int
    digest: str
    commit: int
    at: str
    actor: str
    attestations: tuple[Attestation, ...] = ()
    is_expired: bool = False

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
    """

    store_id: str
    number: int
    digest: str
    at: str = ""
    protected_aliases: frozenset[str] = frozenset({"production"})
    tasks: Mapping[str, TaskState] = field(default_factory=dict)

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

    def apply(self, commit: Commit) -> "StoreState":
        """The state after `commit`. See `fold` for the errors."""
        return fold(self, (commit,))

    def check(self, operations: Iterable[Operation], reason: str) -> None:
        """Check that a commit of `operations` would be legal now; changes nothing.

        Raises:
            ConflictError: an alias is not where `expected` says, or a number is not the next free one.
            NotFoundError: a task, version or alias that an operation names does not exist.
            RefusedError: a protected alias without a passing gate, or the expiry of a version an alias points at.
        """
        draft = _Draft(self)
        for operation in operations:
            draft.perform(operation, _Context(self.number + 1, self.at, "", reason))


def fold(state: StoreState, commits: Iterable[Commit]) -> StoreState:
    """`state` with `commits` applied in order.

    Raises:
        CorruptError: a commit does not follow the one before it, or no writer could have made it.
    """
    draft = _Draft(state)
    number, digest, at = state.number, state.digest, state.at
    for commit in commits:
        if commit.number != number + 1 or commit.parent != digest:
            raise CorruptError(
                f"commit {commit.number} does not follow commit {number}: its parent is {commit.parent[:12]}, "
                f"expected {digest[:12]}. The log was rewritten or belongs to another store"
            )
        if commit.at < at:
            raise CorruptError(f"commit {commit.number} is dated {commit.at}, before its parent's {at}")
        context = _Context(commit.number, commit.at, commit.actor, commit.reason)
        try:
            for operation in commit.operations:
                draft.perform(operation, context)
        except (ConflictError, NotFoundError, RefusedError, InvalidInputError) as error:
            raise CorruptError(f"commit {commit.number} holds an operation no writer may make: {error}") from error
        number, digest, at = commit.number, commit.digest, commit.at
    return replace(state, number=number, digest=digest, at=at, tasks=draft.tasks())


@dataclass(frozen=True, slots=True)
class _Context:
    commit: int
    at: str
    actor: str
    reason: str


class _TaskDraft:
    def __init__(self, task: TaskState) -> None:
        self.name = task.name
        self.versions = list(task.versions)
        self.aliases = dict(task.aliases)
        self.moves = list(task.moves)

    def frozen(self) -> TaskState:
        return TaskState(self.name, tuple(self.versions), self.aliases, tuple(self.moves))

    def existing(self, number: int) -> PromptVersion:
        if not 1 <= number <= len(self.versions):
            raise NotFoundError(
                f"{self.name}:{number} does not exist; {self.name} has versions 1 to {len(self.versions)}"
            )
        version = self.versions[number - 1]
        if version.is_expired:
            raise NotFoundError(f"{version} is expired")
        return version

    def require_alias(self, alias: str, expected: int | None) -> None:
        actual = self.aliases.get(alias)
        if actual != expected:
            raise ConflictError(
                f"{self.name}@{alias} points at {_version_text(actual)}, expected {_version_text(expected)}; "
                "somebody moved it: look at `promptstore history` and decide again"
            )


class _Draft:
    """A mutable copy of a state that copies only the tasks that are touched."""

    def __init__(self, state: StoreState) -> None:
        self._state = state
        self._touched: dict[str, _TaskDraft] = {}

    def tasks(self) -> Mapping[str, TaskState]:
        if not self._touched:
            return self._state.tasks
        return {**self._state.tasks, **{name: task.frozen() for name, task in self._touched.items()}}

    def perform(self, operation: Operation, context: _Context) -> None:
        match operation:
            case Publish():
                self._publish(operation, context)
            case MoveAlias():
                self._move_alias(operation, context)
            case DeleteAlias(name, alias, expected):
                task = self._task(name)
                task.require_alias(alias, expected)
                self._record_move(task, alias, None, context, forced=False)
                del task.aliases[alias]
            case Attest(name, number, kind, body):
                task = self._task(name)
                version = task.existing(number)
                said = Attestation(kind, body, context.commit, context.at, context.actor)
                task.versions[number - 1] = replace(version, attestations=(*version.attestations, said))
            case Expire(name, number):
                self._expire(self._task(name), number)

    def _publish(self, operation: Publish, context: _Context) -> None:
        task = self._touched.get(operation.task)
        if task is None:
            task = _TaskDraft(self._state.tasks.get(operation.task, TaskState(operation.task)))
        next_number = len(task.versions) + 1
        if operation.number != next_number:
            raise ConflictError(f"{operation.task}:{operation.number} cannot be published: the next is {next_number}")
        self._touched[operation.task] = task
        task.versions.append(
            PromptVersion(operation.task, next_number, operation.manifest, context.commit, context.at, context.actor)
        )

    def _move_alias(self, operation: MoveAlias, context: _Context) -> None:
        task = self._task(operation.task)
        task.require_alias(operation.alias, operation.expected)
        version = task.existing(operation.to)
        is_protected = operation.alias in self._state.protected_aliases
        if operation.forced and not context.reason:
            raise RefusedError(f"{operation.task}@{operation.alias}: a forced move needs a reason")
        if is_protected and not operation.forced and not version.has_passed_gate:
            raise RefusedError(
                f"{operation.task}@{operation.alias} is protected and {version} has no passing gate; "
                "run the gate (`promptstore gate`), or force the move with a reason"
            )
        self._record_move(task, operation.alias, operation.to, context, forced=operation.forced)
        task.aliases[operation.alias] = operation.to

    def _expire(self, task: _TaskDraft, number: int) -> None:
        version = task.existing(number)
        holders = sorted(alias for alias, at in task.aliases.items() if at == number)
        if holders:
            raise RefusedError(f"{version} is what {', '.join(holders)} points at; move the alias before expiring it")
        task.versions[number - 1] = replace(version, is_expired=True)

    def _record_move(self, task: _TaskDraft, alias: str, after: int | None, context: _Context, *, forced: bool) -> None:
        before = task.aliases.get(alias)
        move = AliasMove(alias, before, after, context.commit, context.at, context.actor, context.reason, forced)
        task.moves.append(move)

    def _task(self, name: str) -> _TaskDraft:
        if name not in self._touched:
            self._touched[name] = _TaskDraft(self._state.task(name))
        return self._touched[name]


def _version_text(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"
