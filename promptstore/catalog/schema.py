"""Making and changing the tables, inside the caller's transaction."""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData

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


def drop_schema(connection: Connection) -> None:
    """Remove every table of the catalogue, known to this version or not."""
    found = MetaData()
    found.reflect(connection, only=lambda name, _: name.startswith("catalog_"))
    found.drop_all(connection)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "promptstore.catalog:migrations")
    return config


def _newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _revision(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()
