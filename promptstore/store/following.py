"""Reading the log forward from a state."""

from collections.abc import Callable, Iterator

from promptstore.core.commit import Commit
from promptstore.core.fold import fold
from promptstore.core.state import StoreState
from promptstore.errors import NotFoundError
from promptstore.store.layout import commit_key
from promptstore.store.objects import ObjectStore
from promptstore.store.parallel import WIDTH, in_parallel
from promptstore.store.reading import read

Accept = Callable[[Commit], None]


def read_commits(objects: ObjectStore, start: int, *, stop: int | None = None) -> Iterator[list[Commit]]:
    """Commits from `start`, in order, until one is missing or `stop` (excluded) is reached, in ever wider batches.

    Asking for news costs one call, and one more for each commit there is; of a long tail up to 16 are read at a time.
    The chain between them is not checked here.
    """
    found = 0
    while stop is None or start + found < stop:
        first = start + found
        width = min(max(found, 1), WIDTH)
        numbers = range(first, first + width if stop is None else min(first + width, stop))
        batch = _read_batch(objects, numbers)
        if batch:
            yield batch
        if len(batch) < len(numbers):
            return
        found += len(batch)


def follow(
    objects: ObjectStore, state: StoreState, accept: Accept, *, stop: int | None = None
) -> Iterator[tuple[StoreState, list[Commit]]]:
    """States after `state` with the commits that led to each, up to the end of the log or commit `stop` (excluded).

    accept: called with each commit first; refuses one that the reader does not trust.

    Raises:
        CorruptError: a commit does not follow the one before it.
    """
    for batch in read_commits(objects, state.number + 1, stop=stop):
        for commit in batch:
            accept(commit)
        state = fold(state, batch)
        yield state, batch


def read_commit(objects: ObjectStore, number: int) -> Commit:
    """Commit `number`, as it is stored. Raises NotFoundError: the log ends before it."""
    return read(objects, commit_key(number), lambda data: Commit.from_bytes(data, number))


def _read_batch(objects: ObjectStore, numbers: range) -> list[Commit]:
    """The commits of `numbers` up to the first that does not exist."""
    if len(numbers) == 1:
        found = [_read_or_none(objects, numbers.start)]
    else:
        found = list(in_parallel(lambda number: _read_or_none(objects, number), numbers))
    end = found.index(None) if None in found else len(found)
    return [commit for commit in found[:end] if commit is not None]


def _read_or_none(objects: ObjectStore, number: int) -> Commit | None:
    try:
        return read_commit(objects, number)
    except NotFoundError:
        return None
