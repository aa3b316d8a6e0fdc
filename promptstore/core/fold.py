"""What a log means: the fold of its commits. Writers and readers apply the same rules."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from promptstore.core.checkpoint import StoredTasks
from promptstore.core.commit import Commit
from promptstore.core.operation import Attest, Condemn, DeleteAlias, Expire, MoveAlias, Operation, Publish
from promptstore.core.state import AliasMove, Attestation, PromptVersion, StoreState, TaskState
from promptstore.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError, RefusedError


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
    return draft.frozen(number, digest, at)


def check(state: StoreState, operations: Iterable[Operation], reason: str) -> None:
    """Check that a commit of `operations` on top of `state` would be legal.

    Raises:
        ConflictError: an alias is not where `expected` says, or a number is not the next free one.
        NotFoundError: a task, version or alias that an operation names does not exist.
        RefusedError: a protected alias without a passing gate, the expiry of a version an alias points at, or
            bytes condemned that a version needs.
    """
    draft = _Draft(state)
    for operation in operations:
        draft.perform(operation, _Context(state.number + 1, state.at, "", reason))


def needed_digests(state: StoreState, among: Collection[str]) -> set[str]:
    """Those of the digests `among` that a version which is not expired has as its manifest or payload."""
    tasks = state.tasks.mentioning(among) if isinstance(state.tasks, StoredTasks) else state.tasks.values()
    kept = (version for task in tasks for version in task.versions if not version.is_expired)
    found = {digest for version in kept for digest in (version.digest, version.payload)}
    return found.intersection(among)


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
        self._condemned: dict[str, int] = {}

    def frozen(self, number: int, digest: str, at: str) -> StoreState:
        tasks, condemned = self._state.tasks, self._state.condemned
        if self._touched:
            changed = {name: task.frozen() for name, task in self._touched.items()}
            tasks = tasks | changed if isinstance(tasks, StoredTasks) else {**tasks, **changed}
        if self._condemned:
            condemned = {**condemned, **self._condemned}
        return replace(self._state, number=number, digest=digest, at=at, tasks=tasks, condemned=condemned)

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
                self._expire(self._task(name), number, context)
            case Condemn(digests):
                self._condemn(digests, context)

    def _publish(self, operation: Publish, context: _Context) -> None:
        task = self._touched.get(operation.task)
        if task is None:
            task = _TaskDraft(self._state.tasks.get(operation.task, TaskState(operation.task)))
        next_number = len(task.versions) + 1
        if operation.number != next_number:
            raise ConflictError(f"{operation.task}:{operation.number} cannot be published: the next is {next_number}")
        self._touched[operation.task] = task
        task.versions.append(
            PromptVersion(
                task=operation.task,
                number=next_number,
                digest=operation.manifest,
                payload=operation.payload,
                commit=context.commit,
                at=context.at,
                actor=context.actor,
            )
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

    def _expire(self, task: _TaskDraft, number: int, context: _Context) -> None:
        version = task.existing(number)
        holders = sorted(alias for alias, at in task.aliases.items() if at == number)
        if holders:
            raise RefusedError(f"{version} is what {', '.join(holders)} points at; move the alias before expiring it")
        task.versions[number - 1] = replace(version, expired_in=context.commit)

    def _condemn(self, digests: tuple[str, ...], context: _Context) -> None:
        needed = needed_digests(self.frozen(context.commit, "", context.at), digests)
        if needed:
            raise RefusedError(f"bytes {min(needed)[:12]}… are needed by a version; expire the version first")
        self._condemned.update(dict.fromkeys(digests, context.commit))

    def _record_move(self, task: _TaskDraft, alias: str, after: int | None, context: _Context, *, forced: bool) -> None:
        before = task.aliases.get(alias)
        move = AliasMove(
            task.name, alias, before, after, context.commit, context.at, context.actor, context.reason, forced
        )
        task.moves.append(move)

    def _task(self, name: str) -> _TaskDraft:
        if name not in self._touched:
            self._touched[name] = _TaskDraft(self._state.task(name))
        return self._touched[name]


def _version_text(number: int | None) -> str:
    return "nothing" if number is None else f"version {number}"
