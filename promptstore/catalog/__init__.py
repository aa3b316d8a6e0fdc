"""The catalogue: an SQL projection of the log for people. Nothing that serves prompts needs it."""

from promptstore.catalog.catalog import Catalog, SyncReport
from promptstore.catalog.search import FoundVersion, MetricRange, Query

__all__ = ["Catalog", "FoundVersion", "MetricRange", "Query", "SyncReport"]
