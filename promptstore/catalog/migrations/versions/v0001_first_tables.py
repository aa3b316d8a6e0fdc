"""The first tables: cursor, commits, tasks, versions, metrics, aliases, moves, attestations."""

import sqlalchemy as sa
from alembic import op

from promptstore.catalog.types import Instant, Words

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "catalog_cursor",
        sa.Column("store_id", Words(), nullable=False),
        _number("number"),
        _digest("digest", nullable=False),
        sa.PrimaryKeyConstraint("store_id", name="pk_catalog_cursor"),
    )
    op.create_table(
        "catalog_commits",
        _number("number"),
        *_who_and_when(),
        sa.Column("reason", Words(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_catalog_commits"),
    )
    op.create_index("ix_catalog_commits_at", "catalog_commits", ["at"])
    op.create_table(
        "catalog_tasks",
        sa.Column("name", Words(), nullable=False),
        *_who_and_when(),
        sa.PrimaryKeyConstraint("name", name="pk_catalog_tasks"),
    )
    _create_versions()
    _create_what_versions_have()
    _create_moves()


def _create_versions() -> None:
    op.create_table(
        "catalog_versions",
        sa.Column("task", Words(), nullable=False),
        _number("number"),
        _digest("digest", nullable=False),
        _digest("payload", nullable=False),
        sa.Column("commit", sa.BigInteger(), nullable=False),
        *_who_and_when(),
        sa.Column("gate", Words()),
        sa.Column("expired_in", sa.BigInteger()),
        sa.Column("kind", Words()),
        sa.Column("metric", Words()),
        sa.Column("num_virtual_tokens", sa.BigInteger()),
        sa.Column("hidden_size", sa.BigInteger()),
        sa.Column("payload_bytes", sa.BigInteger()),
        sa.Column("model_name", Words()),
        sa.Column("model_revision", Words()),
        sa.Column("architecture", Words()),
        _digest("weights_digest"),
        _digest("tokenizer_digest"),
        sa.Column("mlflow_run", Words()),
        sa.Column("git_commit", Words()),
        _digest("config_digest"),
        _digest("data_digest"),
        _digest("parent"),
        sa.ForeignKeyConstraint(["task"], ["catalog_tasks.name"], name="fk_catalog_versions_task"),
        sa.PrimaryKeyConstraint("task", "number", name="pk_catalog_versions"),
    )
    for column in ("at", "data_digest", "model_name", "actor"):
        op.create_index(f"ix_catalog_versions_{column}", "catalog_versions", [column])


def _create_what_versions_have() -> None:
    op.create_table(
        "catalog_metrics",
        *_version("catalog_metrics"),
        sa.Column("name", Words(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task", "number", "name", name="pk_catalog_metrics"),
    )
    op.create_index("ix_catalog_metrics_name_value", "catalog_metrics", ["name", "value"])
    op.create_table(
        "catalog_aliases",
        *_version("catalog_aliases"),
        sa.Column("alias", Words(), nullable=False),
        sa.PrimaryKeyConstraint("task", "alias", name="pk_catalog_aliases"),
    )
    op.create_table(
        "catalog_attestations",
        *_version("catalog_attestations"),
        _number("position"),
        sa.Column("kind", Words(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("commit", sa.BigInteger(), nullable=False),
        *_who_and_when(),
        sa.PrimaryKeyConstraint("task", "number", "position", name="pk_catalog_attestations"),
    )


def _create_moves() -> None:
    op.create_table(
        "catalog_moves",
        sa.Column("task", Words(), nullable=False),
        _number("position"),
        sa.Column("alias", Words(), nullable=False),
        sa.Column("before", sa.BigInteger()),
        sa.Column("after", sa.BigInteger()),
        sa.Column("commit", sa.BigInteger(), nullable=False),
        *_who_and_when(),
        sa.Column("reason", Words(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["catalog_tasks.name"], name="fk_catalog_moves_task"),
        sa.PrimaryKeyConstraint("task", "position", name="pk_catalog_moves"),
    )
    op.create_index("ix_catalog_moves_at", "catalog_moves", ["at"])


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), autoincrement=False, nullable=False)


def _digest(name: str, *, nullable: bool = True) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), nullable=nullable)


def _who_and_when() -> tuple[sa.Column[str], sa.Column[str]]:
    return sa.Column("at", Instant(), nullable=False), sa.Column("actor", Words(), nullable=False)


def _version(table: str) -> tuple[sa.Column[str], sa.Column[int], sa.ForeignKeyConstraint]:
    target = ["catalog_versions.task", "catalog_versions.number"]
    foreign_key = sa.ForeignKeyConstraint(["task", "number"], target, name=f"fk_{table}_version")
    return sa.Column("task", Words(), nullable=False), _number("number"), foreign_key
