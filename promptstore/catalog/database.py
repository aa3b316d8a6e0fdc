"""An SQL database with one writer at a time: SQLite or PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool

from promptstore.errors import InvalidInputError, NotFoundError, StoreUnavailableError

WAIT_S = 60
CONNECT_TIMEOUT_S = 10
WRITES = "promptstore_writes"
# One lock for the catalogue of a PostgreSQL database: the first 63 bits of SHA-256("promptstore.catalog").
ADVISORY_LOCK = 0x401BA86661FD4737


class Database:
    """Connections are made per transaction, so a fork or a restarted server does no harm."""

    def __init__(self, url: str) -> None:
        self._url = _checked(url)
        is_sqlite = self._url.get_backend_name() == "sqlite"
        self._file = Path(str(self._url.database)) if is_sqlite else None
        self._engine = _engine(self._url)

    @property
    def url(self) -> str:
        """How people name it, without the password."""
        return self._url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment.

        Raises:
            NotFoundError: there is no such SQLite file yet.
        """
        if self._file is not None and not self._file.exists():
            raise NotFoundError(f"there is no catalogue at {self.url} yet; run `promptstore catalog sync`")
        with self._faults(), self._engine.connect() as plain:
            # SQLite's transactions see one moment anyway.
            connection = plain if self._file else plain.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other `writing` of any process runs beside; all of it or nothing takes effect."""
        if self._file is not None:
            _make_folder(self._file.parent)
        with self._faults(), self._engine.connect() as plain:
            connection = plain.execution_options(**{WRITES: True})
            with connection.begin():
                if self._file is None:
                    connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_S}s'"))
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
                yield connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, DataError):
            raise  # not a fault of the database but of the projection
        except DBAPIError as error:
            raise StoreUnavailableError(
                f"the catalogue at {self.url} cannot be used: {str(error.orig).strip()}. The store needs no catalogue: "
                "repeat when the database is back, and `promptstore catalog rebuild` if it was lost"
            ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"the catalogue cannot be made in {folder}: {error.strerror}") from error


def _checked(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except ArgumentError as error:
        raise InvalidInputError(
            f"catalogue {text_url!r}: {error}; expected sqlite:///file or postgresql://…"
        ) from error
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    kind = url.get_backend_name()
    if kind not in {"sqlite", "postgresql"}:
        raise InvalidInputError(f"catalogue of unknown kind {kind!r}; expected sqlite:///file or postgresql://…")
    if kind == "sqlite" and url.database in {None, "", ":memory:"}:
        raise InvalidInputError("a catalogue in memory would be gone at once; expected sqlite:///file")
    return url


def _engine(url: URL) -> Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"timeout": WAIT_S} if is_sqlite else {"connect_timeout": CONNECT_TIMEOUT_S}
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=options)
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the catalogue needs {error.name}: pip install 'promptstore[postgresql]'") from error
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    """Leave transactions to us: the driver begins them late. Foreign keys and LIKE as in PostgreSQL."""
    connection.isolation_level = None
    connection.execute("PRAGMA case_sensitive_like = ON")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
