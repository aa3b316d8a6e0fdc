"""Everything a catalogue holds, to compare two of them."""

from typing import Any

from sqlalchemy import select

from promptstore.catalog.database import Database
from promptstore.catalog.models import CatalogTable


def dump_catalog(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table, sorted."""
    with Database(url).reading() as connection:
        tables = CatalogTable.metadata.sorted_tables
        return {table.name: sorted(map(tuple, connection.execute(select(table))), key=repr) for table in tables}
