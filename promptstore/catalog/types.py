"""Column types that hold the same value in SQLite and PostgreSQL."""

from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from promptstore.core.instant import format_instant


class Instant(TypeDecorator[str]):
    """A moment as the log writes it; `timestamp with time zone` in PostgreSQL, the same text in SQLite."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind = DateTime(timezone=True) if dialect.name == "postgresql" else String(27)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return datetime.fromisoformat(value) if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        return format_instant(value) if isinstance(value, datetime) else value


class Words(TypeDecorator[str]):
    """Text that people wrote. PostgreSQL cannot store U+0000, which JSON can say: it becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - as above
        return None if value is None else value.replace("\x00", "\ufffd")
