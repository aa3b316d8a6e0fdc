"""What Alembic runs: the steps, on the connection and in the transaction that `promptstore.catalog.schema` gives."""

from alembic import context

from promptstore.catalog.models import CatalogTable
from promptstore.catalog.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=CatalogTable.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
