"""Commands that read and change a store: what exists, where aliases point, and every move they made."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.cli.options import AliasOption, JsonOption, ReasonOption, RefArgument, StoreOption, TaskArgument
from promptstore.cli.output import emit, emit_one
from promptstore.core.ref import DEFAULT_ALIAS, PromptRef
from promptstore.core.state import AliasMove, PromptVersion, StoreState, TaskState
from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.store.prompt_store import PromptStore

app = typer.Typer()
MOMENT_HELP = "ISO 8601, as in 2026-11-23T09:00:00Z; local time without a zone."


def open_store(store: str | None) -> "PromptStore":
    """The store that a command works on, followed up to its newest commit; it must exist."""
    from promptstore.settings import load_settings
    from promptstore.wiring import open_prompt_store

    return open_prompt_store(load_settings(store=store), create=False)


def require_reason(reason: str, *, force: bool) -> None:
    """Raises InvalidInputError: something is forced and nobody says why."""
    if force and not reason:
        raise InvalidInputError("--force needs a reason that the log keeps: add -m '...'")


def read_moment(text: str) -> datetime:
    """The moment that a person wrote. Raises InvalidInputError: not ISO 8601, or before or after what has a name."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidInputError(f"time {text!r} is not ISO 8601, as in 2026-11-23T09:00:00Z") from None


@app.command(rich_help_panel="Set up")
def init(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make a store, after proving that its place can hold one. Safe to repeat."""
    from promptstore.settings import load_settings
    from promptstore.wiring import open_prompt_store

    settings = load_settings(store=store)
    state = open_prompt_store(settings).state
    emit_one(
        {"store": settings.store_url, "id": state.store_id, "commit": state.number},
        f"{settings.store_url} is a store (id {state.store_id[:12]}, commit {state.number})",
        as_json=as_json,
    )


@app.command("list", rich_help_panel="Look")
def list_versions(
    task: Annotated[str | None, typer.Argument(help="Only this task, with all its versions.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tasks, or the versions of one task."""
    state = open_store(store).state
    if task is None:
        emit((_task_row(each) for each in state.tasks.values()), as_json=as_json)
        return
    found = state.task(task)
    emit((_version_row(found, each) for each in found.versions), as_json=as_json, short="digest")


@app.command(rich_help_panel="Look")
def show(ref: RefArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show one version: its model, task, metrics, provenance and attestations."""
    prompts = open_store(store)
    version = prompts.resolve(ref)
    manifest = prompts.manifest(version.digest)
    ensemble = manifest.payload.ensemble
    facts: dict[str, Any] = {
        "version": str(version),
        "digest": version.digest,
        "published": version.at,
        "by": version.actor,
        "aliases": [
            name for name, number in prompts.state.task(version.task).aliases.items() if number == version.number
        ],
        "base_model": manifest.fingerprint.name,
        "num_virtual_tokens": manifest.payload.num_virtual_tokens,
        "hidden_size": manifest.payload.hidden_size,
        **({"ensemble": ensemble.to_json()} if ensemble is not None else {}),
        "payload_bytes": manifest.payload.payload_bytes,
        **{f"metric.{name}": value for name, value in manifest.metrics.items()},
        **{f"provenance.{name}": value for name, value in manifest.provenance.to_json().items() if value},
        "template": manifest.task.template,
        "labels": list(manifest.task.label_names),
        "attestations": [f"{each.kind} {each.body.get('verdict', '')} ({each.at})" for each in version.attestations],
    }
    if as_json:
        emit([facts], as_json=True)
    else:
        emit(({"fact": name, "value": value} for name, value in facts.items()), as_json=False)


@app.command(rich_help_panel="Look")
def history(
    task: Annotated[str | None, typer.Argument(help="Only this task.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every move of every alias, oldest first: who, when, why."""
    emit((_move_row(move) for move in open_store(store).history(task)), as_json=as_json)


@app.command(rich_help_panel="Look")
def at(
    time: Annotated[str, typer.Argument(help=MOMENT_HELP)],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what every alias pointed to at a moment in the past, from the log alone."""
    emit(_alias_rows(open_store(store).at(read_moment(time))), as_json=as_json)


@app.command(rich_help_panel="Look")
def diff(
    before: Annotated[str, typer.Argument(metavar="REF")],
    after: Annotated[str, typer.Argument(metavar="REF")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how two versions differ: model, task, metrics, provenance, tensor."""
    emit((each.to_json() for each in open_store(store).diff(before, after)), as_json=as_json)


@app.command(rich_help_panel="Change")
def promote(
    ref: RefArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    expected: Annotated[
        int | None, typer.Option(help="Move only if the alias points at this version now (0: does not exist).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move a protected alias without a passing gate.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version. `production` needs a version that passed its gate."""
    require_reason(reason, force=force)
    prompts = open_store(store)
    if expected is None:
        version = prompts.promote(ref, alias, reason=reason, force=force)
    else:
        version = prompts.promote(ref, alias, expected=expected or None, reason=reason, force=force)
    emit_one(
        {"task": version.task, "alias": alias, "version": version.number, "digest": version.digest},
        f"{version.task}@{alias} -> {version} ({version.digest[:12]})",
        as_json=as_json,
    )


@app.command(rich_help_panel="Change")
def rollback(
    task: TaskArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    to: Annotated[int | None, typer.Option(help="Version to return to; the one before, if not given.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Return an alias to the version it pointed at before."""
    version = open_store(store).rollback(task, alias, reason=reason or "rollback", to=to)
    emit_one(
        {"task": task, "alias": alias, "version": version.number, "digest": version.digest},
        f"{task}@{alias} -> {version} ({version.digest[:12]})",
        as_json=as_json,
    )


@app.command("delete-alias", rich_help_panel="Change")
def delete_alias(
    task: TaskArgument,
    alias: Annotated[str, typer.Argument(help="The alias to remove.")],
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an alias; the versions stay."""
    open_store(store).delete_alias(task, alias, reason=reason)
    emit_one({"task": task, "alias": alias}, f"{task}@{alias} is gone", as_json=as_json)


@app.command(rich_help_panel="Change")
def expire(
    refs: Annotated[list[str], typer.Argument(metavar="REF...")],
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Un-name versions that no alias points at; `gc` deletes their bytes after the grace period."""
    expired = open_store(store).expire([PromptRef.parse(ref) for ref in refs], reason=reason)
    emit(({"version": str(each), "digest": each.digest} for each in expired), as_json=as_json)


@app.command(rich_help_panel="Exchange")
def pull(
    ref: RefArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder (PEFT adapter), .npy, .safetensors or .bundle file.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version to disk, verified, in a form that other tools read."""
    from promptstore.store.interchange import export_prompt

    pulled = open_store(store).pull(ref, for_model=None)
    written = export_prompt(pulled, to)
    emit_one(
        {"version": str(pulled.version), "digest": pulled.version.digest, "path": str(written)},
        f"{pulled.version} written to {written}",
        as_json=as_json,
    )


def _task_row(task: TaskState) -> dict[str, Any]:
    return {
        "task": task.name,
        "versions": sum(not each.is_expired for each in task.versions),
        "newest": task.versions[-1].at if task.versions else None,
        "aliases": [f"{name} -> {number}" for name, number in sorted(task.aliases.items())],
    }


def _version_row(task: TaskState, version: PromptVersion) -> dict[str, Any]:
    gates = [str(each.body.get("verdict")) for each in version.attestations if each.kind == "gate"]
    return {
        "version": str(version),
        "digest": version.digest,
        "published": version.at,
        "by": version.actor,
        "gate": gates[-1] if gates else None,
        "aliases": [name for name, number in sorted(task.aliases.items()) if number == version.number],
        "expired": version.is_expired,
    }


def _move_row(move: AliasMove) -> dict[str, Any]:
    return {
        "at": move.at,
        "alias": f"{move.task}@{move.alias}",
        "before": move.before,
        "after": move.after,
        "by": move.actor,
        "reason": move.reason,
        "forced": move.forced,
        "commit": move.commit,
    }


def _alias_rows(state: StoreState) -> Iterable[dict[str, Any]]:
    for task in state.tasks.values():
        for alias, number in sorted(task.aliases.items()):
            yield {"alias": f"{task.name}@{alias}", "version": number, "digest": task.versions[number - 1].digest}
