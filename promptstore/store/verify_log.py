"""Checking `store.json`, every commit, every checkpoint and the hint."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from promptstore.core.checkpoint import checkpoint_to_bytes
from promptstore.core.commit import CHECKPOINT_EVERY, Commit
from promptstore.core.fold import fold
from promptstore.core.header import StoreHeader
from promptstore.core.state import StoreState
from promptstore.errors import CorruptError, NotFoundError, UntrustedError
from promptstore.store.checkpoints import decode_checkpoint, decode_hint
from promptstore.store.following import Accept, read_commit
from promptstore.store.header import read_header
from promptstore.store.layout import HEADER_KEY, HINT_KEY, checkpoint_key, checkpoint_number, commit_key, commit_number
from promptstore.store.objects import ObjectInfo, ObjectStore
from promptstore.store.parallel import in_parallel
from promptstore.store.reading import read, read_digest
from promptstore.store.verify_problem import Problem


class LogCheck:
    """One look at a log. It goes on past what is wrong, to find all that is; `problems` collects it."""

    def __init__(
        self, objects: ObjectStore, listed: Mapping[str, ObjectInfo], accept: Accept, problems: list[Problem]
    ) -> None:
        self._objects = objects
        self._listed = listed
        self._accept = accept
        self._problems = problems
        self._last = max((number for key in listed if (number := commit_number(key))), default=0)

    def run(self) -> StoreState | None:
        """The fold of the commits up to the first that is missing or wrong; `None` without a `store.json`."""
        header = self._header()
        state = header.empty_state() if header else None
        is_whole = True
        for start in range(1, self._last + 1, CHECKPOINT_EVERY):
            numbers = range(start, min(start + CHECKPOINT_EVERY, self._last + 1))
            commits = list(in_parallel(self._commit, numbers))
            if commits[0] is not None:
                self._check_checkpoint(header, state if is_whole else None, commits[0])
            if state is not None and is_whole:
                good = [commit for commit in takewhile(lambda found: found is not None, commits) if commit]
                state, is_folded = self._fold(state, good)
                is_whole = is_folded and len(good) == len(commits)
        self._check_strays()
        return state

    def _header(self) -> StoreHeader | None:
        try:
            return read_header(self._objects)
        except (NotFoundError, CorruptError) as error:
            self._problems.append(Problem(HEADER_KEY, str(error)))
            return None

    def _commit(self, number: int) -> Commit | None:
        key = commit_key(number)
        try:
            commit = read_commit(self._objects, number)
        except NotFoundError:
            self._problems.append(Problem(key, f"commit {number} is missing, though commit {self._last} exists"))
            return None
        except CorruptError as error:
            self._problems.append(Problem(key, str(error)))
            return None
        try:
            self._accept(commit)
        except UntrustedError as error:
            self._problems.append(Problem(key, str(error)))
        return commit

    def _fold(self, state: StoreState, commits: Sequence[Commit]) -> tuple[StoreState, bool]:
        """All of them at once, or as many as are right."""
        try:
            return fold(state, commits), True
        except CorruptError:
            for commit in commits:
                try:
                    state = fold(state, [commit])
                except CorruptError as error:
                    self._problems.append(Problem(commit_key(commit.number), str(error)))
                    break
            return state, False

    def _check_checkpoint(self, header: StoreHeader | None, state: StoreState | None, voucher: Commit) -> None:
        """The checkpoint that `voucher` names, if it is there, against `state`, if that is known."""
        key = checkpoint_key(voucher.number - 1)
        if voucher.checkpoint is None or key not in self._listed:
            return
        try:
            data = read_digest(self._objects, key, voucher.checkpoint)
            is_right = header is None or state is None or _is_of(state, decode_checkpoint(data, header))
        except NotFoundError:
            return
        except CorruptError as error:
            self._problems.append(Problem(key, str(error), is_movable=True))
            return
        if not is_right:
            message = f"checkpoint {voucher.number - 1} says something else than the log up to there"
            self._problems.append(Problem(key, message, is_movable=True))

    def _check_strays(self) -> None:
        """Checkpoints that no commit vouches for, and the hint."""
        for key in self._listed:
            number = checkpoint_number(key)
            if number is not None and (number % CHECKPOINT_EVERY or not 0 < number < self._last):
                self._problems.append(Problem(key, f"no commit names checkpoint {number}", is_movable=True))
        if HINT_KEY not in self._listed:
            return
        try:
            number = read(self._objects, HINT_KEY, decode_hint)
        except (NotFoundError, CorruptError) as error:
            self._problems.append(Problem(HINT_KEY, str(error), is_movable=True))
            return
        if number % CHECKPOINT_EVERY or number >= self._last:
            message = f"the hint names checkpoint {number}, but the log ends at commit {self._last}"
            self._problems.append(Problem(HINT_KEY, message, is_movable=True))


def _is_of(state: StoreState, checkpoint: StoreState) -> bool:
    return checkpoint_to_bytes(checkpoint) == checkpoint_to_bytes(state)
