"""Keeping the catalogue in step with the log."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import takewhile

from sqlalchemy import Connection, delete, insert, select

from promptstore.catalog.database import Database
from promptstore.catalog.models import CursorRow
from promptstore.catalog.projection import Details, News, new_kept_versions, touched_tasks, write_news
from promptstore.catalog.schema import empty_schema, require_schema, upgrade_schema
from promptstore.catalog.search import FoundVersion, Query, find_moves, find_versions
from promptstore.core.state import AliasMove, PromptVersion, StoreState
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError, UntrustedError
from promptstore.store.prompt_store import PromptStore

_READERS = 16


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the catalogue is: the last commit in it and that commit's digest."""

    store_id: str
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class SyncReport:
    """From which commit to which a sync brought the catalogue; equal when there was nothing to do."""

    before: int
    after: int


class Catalog:
    """The catalogue at an SQLAlchemy URL: sqlite:///file or postgresql://user:password@host/database."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    @property
    def url(self) -> str:
        """Without the password."""
        return self._database.url

    def sync(self, store: PromptStore) -> SyncReport:
        """Apply what the log says beyond the catalogue's last commit, in one transaction.

        Any number of processes may do so at once; the tables are made the first time.

        Raises:
            StoreUnavailableError: the database, or the object store, cannot be reached. Nothing was changed.
            InvalidInputError: the catalogue is of another store, or of a newer promptstore.
            UntrustedError: the log is not a continuation of what the catalogue has.
            CorruptError: the manifest of a version that is kept cannot be read.
        """
        with self._database.writing() as connection:
            upgrade_schema(connection)
            cursor = before = _cursor(connection)
        state = store.refresh()
        while cursor is None or (cursor.number, cursor.digest) != (state.number, state.digest):
            news = _gather(store, state, cursor)
            with self._database.writing() as connection:
                found = _cursor(connection)
                cursor = found if found != cursor else _apply(connection, news)
            if cursor is not None and cursor.number > state.number:  # another process was first, and went further
                state = store.refresh()
        return SyncReport(before.number if before else 0, cursor.number)

    def rebuild(self, store: PromptStore) -> SyncReport:
        """Make the catalogue anew from the log alone, in one transaction. Raises as `sync`."""
        news = _gather(store, store.refresh(), None)
        with self._database.writing() as connection:
            empty_schema(connection)
            cursor = _apply(connection, news)
        return SyncReport(0, cursor.number)

    def number(self) -> int:
        """The last commit that the catalogue has; 0 before the first sync."""
        try:
            with self._database.reading() as connection:
                require_schema(connection)
                cursor = _cursor(connection)
        except NotFoundError:
            return 0
        return cursor.number if cursor else 0

    def search(self, query: Query) -> list[FoundVersion]:
        """The versions that match every part of `query`, newest first.

        Raises:
            NotFoundError: nothing was synced yet.
        """
        with self._database.reading() as connection:
            require_schema(connection)
            return find_versions(connection, query)

    def moves(self, *, task: str | None = None, alias: str | None = None, limit: int = 100) -> list[AliasMove]:
        """The newest moves of aliases, newest first. Raises as `search`."""
        with self._database.reading() as connection:
            require_schema(connection)
            return find_moves(connection, task=task, alias=alias, limit=limit)


def _gather(store: PromptStore, state: StoreState, cursor: Cursor | None) -> News:
    """What is to be applied after `cursor`. Reads the object store, holds no lock."""
    if cursor is not None:
        _require_continuation(cursor, state)
    since = cursor.number if cursor else 0
    log = store.ledger.commits(since + 1) if state.number > since else iter(())
    commits = list(takewhile(lambda commit: commit.number <= state.number, log))
    if cursor is not None and commits[0].parent != cursor.digest:
        raise _forked(cursor)
    tasks = [state.task(name) for name in touched_tasks(commits)]
    kept = {version.digest: version for version in new_kept_versions(tasks, since)}
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            details = dict(pool.map(lambda version: (version.digest, _details(store, version)), kept.values()))
    except _GoneError:
        return _gather(store, store.state, cursor)
    return News(since, state, commits, details)


class _GoneError(Exception):
    """A version expired since the state was folded."""


def _details(store: PromptStore, version: PromptVersion) -> Details:
    try:
        return Details.of(store.manifest(version.digest))
    except NotFoundError as error:
        if store.refresh().task(version.task).version(version.number).is_expired:
            raise _GoneError from error
        raise CorruptError(
            f"{version} is in the log but its manifest is not in the store: run `promptstore verify`; "
            "the catalogue goes on once the version is expired"
        ) from error


def _require_continuation(cursor: Cursor, state: StoreState) -> None:
    if cursor.store_id != state.store_id:
        raise InvalidInputError(
            f"the catalogue is of store {cursor.store_id}, not of {state.store_id}; give each store its own, "
            "or replace this one: `promptstore catalog rebuild`"
        )
    if cursor.number >= state.number:
        raise _forked(cursor)


def _forked(cursor: Cursor) -> UntrustedError:
    return UntrustedError(
        f"the log has no commit {cursor.number} with digest {cursor.digest[:12]}, which the catalogue has seen: it was "
        "rolled back or rewritten. If that is as it should be, run `promptstore catalog rebuild`"
    )


def _cursor(connection: Connection) -> Cursor | None:
    row = connection.execute(select(CursorRow.store_id, CursorRow.number, CursorRow.digest)).one_or_none()
    return None if row is None else Cursor(row.store_id, row.number, row.digest)


def _apply(connection: Connection, news: News) -> Cursor:
    write_news(connection, news)
    cursor = Cursor(news.state.store_id, news.state.number, news.state.digest)
    connection.execute(delete(CursorRow))
    connection.execute(insert(CursorRow).values(asdict(cursor)))
    return cursor
