"""From a store's state to rows: what changed since a commit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, update

from promptstore.catalog.models import (
    AliasRow,
    AttestationRow,
    CommitRow,
    MetricRow,
    MoveRow,
    TaskRow,
    VersionRow,
)
from promptstore.core.commit import Commit
from promptstore.core.manifest import Manifest
from promptstore.core.operation import Condemn
from promptstore.core.state import PromptVersion, StoreState, TaskState

Row = dict[str, Any]
COLUMNS = tuple(column.name for column in VersionRow.__table__.columns)
DETAIL_COLUMNS = COLUMNS[COLUMNS.index("kind") :]


@dataclass(frozen=True, slots=True)
class Details:
    """What the catalogue takes from a manifest."""

    columns: Row
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, manifest: Manifest) -> "Details":
        model = manifest.fingerprint
        columns = {
            "kind": manifest.task.kind,
            "metric": manifest.task.metric,
            "num_virtual_tokens": manifest.payload.num_virtual_tokens,
            "hidden_size": manifest.payload.hidden_size,
            "payload_bytes": manifest.payload.payload_bytes,
            "model_name": model.name,
            "model_revision": model.revision,
            "architecture": model.architecture,
            "weights_digest": model.weights_digest,
            "tokenizer_digest": model.tokenizer_digest,
            **manifest.provenance.to_json(),
        }
        return cls(columns, manifest.metrics)


@dataclass(frozen=True, slots=True)
class News:
    """What the log says beyond commit `since`, up to `state`. details: by digest, of the new versions still kept."""

    since: int
    state: StoreState
    commits: Sequence[Commit]
    details: Mapping[str, Details]

    @property
    def tasks(self) -> list[TaskState]:
        """The tasks that the commits touch."""
        return [self.state.task(name) for name in touched_tasks(self.commits)]


def touched_tasks(commits: Iterable[Commit]) -> list[str]:
    """The tasks that `commits` change, in order of their names."""
    operations = (operation for commit in commits for operation in commit.operations)
    return sorted({operation.task for operation in operations if not isinstance(operation, Condemn)})


def new_kept_versions(tasks: Iterable[TaskState], since: int) -> Iterator[PromptVersion]:
    """The versions published after commit `since` and not expired: those whose manifests can be read."""
    return (version for task in tasks for version in task.versions if version.commit > since and not version.is_expired)


def write_news(connection: Connection, news: News) -> None:
    """Bring the tables from commit `news.since` to `news.state`; the caller moves the cursor with them."""
    tasks, since = news.tasks, news.since
    _insert(connection, CommitRow, (_commit_row(commit) for commit in news.commits))
    _insert(connection, TaskRow, (_task_row(task) for task in tasks if task.versions[0].commit > since))
    _insert(connection, VersionRow, (_version_row(each, news.details) for each in _published(tasks, since)))
    _update_known_versions(connection, tasks, since)
    _insert(connection, MetricRow, _metric_rows(tasks, news))
    if tasks:
        connection.execute(
            delete(AliasRow).where(AliasRow.task == bindparam("name")), [{"name": t.name} for t in tasks]
        )
    _insert(connection, AliasRow, _alias_rows(tasks))
    _insert(connection, MoveRow, _move_rows(tasks, since))
    _insert(connection, AttestationRow, _attestation_rows(tasks, since))


def _update_known_versions(connection: Connection, tasks: Sequence[TaskState], since: int) -> None:
    """Versions that were there already: a new verdict changes them, expiry takes what came of their manifest."""
    known = [version for task in tasks for version in task.versions if version.commit <= since]
    judged = [each for each in known if any(said.commit > since and said.kind == "gate" for said in each.attestations)]
    expired = [each for each in known if each.expired_in is not None and each.expired_in > since]
    this = (VersionRow.task == bindparam("of_task"), VersionRow.number == bindparam("of_number"))
    if judged:
        verdicts = [_key(each) | {"verdict": _verdict(each)} for each in judged]
        connection.execute(update(VersionRow).where(*this).values(gate=bindparam("verdict")), verdicts)
    if expired:
        gone: Row = {**dict.fromkeys(DETAIL_COLUMNS), "expired_in": bindparam("in_commit")}
        rows = [_key(each) | {"in_commit": each.expired_in} for each in expired]
        connection.execute(update(VersionRow).where(*this).values(gone), rows)
        metrics = (MetricRow.task == bindparam("of_task"), MetricRow.number == bindparam("of_number"))
        connection.execute(delete(MetricRow).where(*metrics), [_key(each) for each in expired])


def _insert(connection: Connection, table: type[Any], rows: Iterable[Row]) -> None:
    found = list(rows)
    if found:
        connection.execute(insert(table), found)


def _key(version: PromptVersion) -> Row:
    return {"of_task": version.task, "of_number": version.number}


def _published(tasks: Iterable[TaskState], since: int) -> Iterator[PromptVersion]:
    return (version for task in tasks for version in task.versions if version.commit > since)


def _commit_row(commit: Commit) -> Row:
    return {"number": commit.number, "at": commit.at, "actor": commit.actor, "reason": commit.reason}


def _task_row(task: TaskState) -> Row:
    return {"name": task.name, "at": task.versions[0].at, "actor": task.versions[0].actor}


def _version_row(version: PromptVersion, details: Mapping[str, Details]) -> Row:
    columns = dict.fromkeys(DETAIL_COLUMNS) if version.is_expired else details[version.digest].columns
    return {
        "task": version.task,
        "number": version.number,
        "digest": version.digest,
        "payload": version.payload,
        "commit": version.commit,
        "at": version.at,
        "actor": version.actor,
        "gate": _verdict(version),
        "expired_in": version.expired_in,
        **columns,
    }


def _verdict(version: PromptVersion) -> str | None:
    verdicts = [each.body.get("verdict") for each in version.attestations if each.kind == "gate"]
    return verdicts[-1] if verdicts and isinstance(verdicts[-1], str) else None


def _metric_rows(tasks: Iterable[TaskState], news: News) -> Iterator[Row]:
    for version in new_kept_versions(tasks, news.since):
        for name, value in news.details[version.digest].metrics.items():
            yield {"task": version.task, "number": version.number, "name": name, "value": value}


def _alias_rows(tasks: Iterable[TaskState]) -> Iterator[Row]:
    for task in tasks:
        for alias, number in task.aliases.items():
            yield {"task": task.name, "alias": alias, "number": number}


def _move_rows(tasks: Iterable[TaskState], since: int) -> Iterator[Row]:
    for task in tasks:
        for position, move in enumerate(task.moves, start=1):
            if move.commit > since:
                yield {
                    "task": task.name,
                    "position": position,
                    "alias": move.alias,
                    "before": move.before,
                    "after": move.after,
                    "commit": move.commit,
                    "at": move.at,
                    "actor": move.actor,
                    "reason": move.reason,
                    "forced": move.forced,
                }


def _attestation_rows(tasks: Iterable[TaskState], since: int) -> Iterator[Row]:
    for task in tasks:
        for version in task.versions:
            for position, said in enumerate(version.attestations, start=1):
                if said.commit > since:
                    yield {
                        "task": task.name,
                        "number": version.number,
                        "position": position,
                        "kind": said.kind,
                        "body": dict(said.body),
                        "commit": said.commit,
                        "at": said.at,
                        "actor": said.actor,
                    }
