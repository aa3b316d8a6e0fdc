"""Making and changing the tables, inside the caller's transaction."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, delete

from promptstore.catalog.models import CatalogTable
from promptstore.errors import InvalidInputError, NotFoundError

VERSION_TABLE = "catalog_schema"


def upgrade_schema(connection: Connection) -> None:
    """Bring the tables to the form that this version of promptstore reads; makes them the first time.

    Raises:
        InvalidInputError: they were made by a newer version.
    """
    if _revision(connection) == _newest():
        return
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InvalidInputError(
            f"the catalogue has schema {_revision(connection)}, which this promptstore does not know ({error}); "
            "upgrade promptstore, or make the catalogue anew: `promptstore catalog rebuild`"
        ) from error


def require_schema(connection: Connection) -> None:
    """Raises NotFoundError: nothing was synced yet, or by another version of promptstore."""
    found = _revision(connection)
    if found != _newest():
        what = "is empty" if found is None else f"has schema {found}, expected {_newest()}"
        raise NotFoundError(f"the catalogue {what}; run `promptstore catalog sync`")


def empty_schema(connection: Connection) -> None:
    """Leave the tables of this version, empty, whatever was there.

    Rows are deleted where the tables are as they should be, so that people who are reading see the old ones to the
    end; only other tables are dropped.
    """
    if _revision(connection) == _newest() and not compare_metadata(_context(connection), CatalogTable.metadata):
        for table in reversed(CatalogTable.metadata.sorted_tables):
            connection.execute(delete(table))
        return
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name.startswith("catalog_"))
    found.drop_all(connection)
    upgrade_schema(connection)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "promptstore.catalog:migrations")
    return config


def _newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    return _context(connection).get_current_revision()


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "include_name": _is_ours})


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    return kind != "table" or (name is not None and name.startswith("catalog_"))
