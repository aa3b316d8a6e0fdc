"""The tables. A row says nothing that the log and the manifests of kept versions do not say."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKeyConstraint, Index, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from promptstore.catalog.types import Instant, Words

CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class CatalogTable(DeclarativeBase):
    """Every table's name begins with `catalog_`, so that the catalogue may share a database."""

    metadata = MetaData(naming_convention=CONVENTION)
    type_annotation_map = {str: Words, int: BigInteger, float: Double, dict[str, Any]: JSON}  # noqa: RUF012


def _of_version(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["task", "number"], ["catalog_versions.task", "catalog_versions.number"], name=table)


class CursorRow(CatalogTable):
    """One row: the store, and the last commit that is in the catalogue (0: none)."""

    __tablename__ = "catalog_cursor"

    store_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))


class CommitRow(CatalogTable):
    __tablename__ = "catalog_commits"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(Instant, index=True)
    actor: Mapped[str]
    reason: Mapped[str]


class TaskRow(CatalogTable):
    """at, actor: of the first publish."""

    __tablename__ = "catalog_tasks"

    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(Instant)
    actor: Mapped[str]


class VersionRow(CatalogTable):
    """gate: the latest verdict, if any. What comes of the manifest, from `kind` on, goes when the version expires."""

    __tablename__ = "catalog_versions"
    __table_args__ = (
        ForeignKeyConstraint(["task"], ["catalog_tasks.name"], name="fk_catalog_versions_task"),
        Index("ix_catalog_versions_at", "at"),
        Index("ix_catalog_versions_data_digest", "data_digest"),
        Index("ix_catalog_versions_model_name", "model_name"),
        Index("ix_catalog_versions_actor", "actor"),
    )

    task: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    payload: Mapped[str] = mapped_column(String(64))
    commit: Mapped[int]
    at: Mapped[str] = mapped_column(Instant)
    actor: Mapped[str]
    gate: Mapped[str | None]
    expired_in: Mapped[int | None]
    kind: Mapped[str | None]
    metric: Mapped[str | None]
    num_virtual_tokens: Mapped[int | None]
    hidden_size: Mapped[int | None]
    payload_bytes: Mapped[int | None]
    model_name: Mapped[str | None]
    model_revision: Mapped[str | None]
    architecture: Mapped[str | None]
    weights_digest: Mapped[str | None] = mapped_column(String(64))
    tokenizer_digest: Mapped[str | None] = mapped_column(String(64))
    mlflow_run: Mapped[str | None]
    git_commit: Mapped[str | None]
    config_digest: Mapped[str | None] = mapped_column(String(64))
    data_digest: Mapped[str | None] = mapped_column(String(64))
    parent: Mapped[str | None] = mapped_column(String(64))


class MetricRow(CatalogTable):
    """A metric known at publish; gone when the version expires."""

    __tablename__ = "catalog_metrics"
    __table_args__ = (
        _of_version("fk_catalog_metrics_version"),
        Index("ix_catalog_metrics_name_value", "name", "value"),
    )

    task: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]


class AliasRow(CatalogTable):
    """Where an alias points now."""

    __tablename__ = "catalog_aliases"
    __table_args__ = (_of_version("fk_catalog_aliases_version"),)

    task: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]


class MoveRow(CatalogTable):
    """One move of an alias. position: in the task's history, from 1."""

    __tablename__ = "catalog_moves"
    __table_args__ = (
        ForeignKeyConstraint(["task"], ["catalog_tasks.name"], name="fk_catalog_moves_task"),
        Index("ix_catalog_moves_at", "at"),
    )

    task: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    alias: Mapped[str]
    before: Mapped[int | None]
    after: Mapped[int | None]
    commit: Mapped[int]
    at: Mapped[str] = mapped_column(Instant)
    actor: Mapped[str]
    reason: Mapped[str]
    forced: Mapped[bool]


class AttestationRow(CatalogTable):
    """position: among the version's attestations, from 1."""

    __tablename__ = "catalog_attestations"
    __table_args__ = (_of_version("fk_catalog_attestations_version"),)

    task: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    body: Mapped[dict[str, Any]]
    commit: Mapped[int]
    at: Mapped[str] = mapped_column(Instant)
    actor: Mapped[str]
