"""Commands that look after a store: verify, collect garbage, copy, watch."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from promptstore.cli.options import AlwaysJsonOption, JsonOption, ReasonOption, StoreOption
from promptstore.cli.output import emit, emit_one, note
from promptstore.cli.store import open_store
from promptstore.errors import CorruptError, InvalidInputError, StoreUnavailableError

app = typer.Typer()
DEFAULT_GRACE_HOURS = 7 * 24.0


@app.command(rich_help_panel="Care")
def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged payloads, manifests and checkpoints to quarantine/.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every object: every name resolves, every digest matches, the chain is unbroken; list orphans."""
    from promptstore.settings import load_settings
    from promptstore.store.memory import HeadMemory
    from promptstore.store.trust import TrustPolicy
    from promptstore.store.verify import quarantine
    from promptstore.store.verify import verify as verify_objects
    from promptstore.wiring import open_settings_objects

    settings = load_settings(store=store)
    objects = open_settings_objects(settings)
    trust = TrustPolicy.load(settings.trusted_keys) if settings.trusted_keys else None
    found = verify_objects(objects, trust=trust, memory=HeadMemory(settings.state_dir / "heads"))
    moved = quarantine(objects, found) if repair else []
    rows: list[dict[str, Any]] = [
        *({"finding": "problem", "key": each.key, "message": each.message} for each in found.problems),
        *(
            {"finding": "orphan", "key": each.key, "message": "no version needs it; `gc` deletes it in time"}
            for each in found.orphans
        ),
        *(
            {"finding": "unknown", "key": each.key, "message": "not part of the format; left alone"}
            for each in found.unknown
        ),
        *({"finding": "quarantined", "key": key, "message": "moved here"} for key in moved),
    ]
    emit(rows, as_json=as_json)
    if not found.is_clean:
        raise CorruptError(f"{len(found.problems)} problem(s) in {found.objects} objects of {objects.url}")
    commit = found.state.number if found.state else 0
    note(f"clean: {found.objects} objects, {found.size_bytes} bytes, {commit} commits, {len(found.orphans)} orphan(s)")


@app.command(rich_help_panel="Care")
def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="Really delete; without it, only say what would go.")
    ] = False,
    grace_hours: Annotated[
        float, typer.Option("--grace", min=0.0, help="Hours that bytes are kept after use.")
    ] = DEFAULT_GRACE_HOURS,
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the bytes of expired versions, and orphans, once older than the grace by the store's own clock."""
    from promptstore.store.garbage import collect_garbage

    grace = timedelta(hours=grace_hours)
    ledger = open_store(store).ledger
    found = collect_garbage(ledger, grace=grace, dry_run=not delete, reason=reason or "garbage collection")
    emit(({"key": each.key, "bytes": each.size_bytes, "reason": each.reason} for each in found), as_json=as_json)
    size_bytes = sum(each.size_bytes for each in found)
    done = "deleted" if delete else "would be deleted; repeat with --delete"
    note(f"{len(found)} object(s), {size_bytes} bytes {done}")


@app.command(rich_help_panel="Care")
def copy(
    to: Annotated[str, typer.Argument(help="URL of the copy: an empty place, or an earlier copy.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a copy of the store up to date: same history, same digests. Stopped, it goes on where it was."""
    from promptstore.objects.open import open_object_store
    from promptstore.settings import load_settings
    from promptstore.store.copy import copy_store

    copied = copy_store(open_store(store).ledger, open_object_store(to, load_settings()))
    emit_one(
        {"to": to, "commits": copied.commits, "blobs": copied.blobs, "checkpoints": copied.checkpoints},
        f"{copied.commits} commit(s) and {copied.blobs} object(s) copied to {to}",
        as_json=as_json,
    )


@app.command(rich_help_panel="Look")
def watch(
    cursor: Annotated[str | None, typer.Option(help="Name of a durable place to go on from.")] = None,
    start: Annotated[int, typer.Option(min=1, help="First commit, without a cursor.")] = 1,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for news at the end.")] = True,
    poll_s: Annotated[float, typer.Option("--poll", min=0.05, help="Seconds between looks.")] = 1.0,
    store: StoreOption = None,
    as_json: AlwaysJsonOption = False,  # noqa: ARG001 - as in every command
) -> None:
    """Print every operation of the log as a JSON line, in order; with a cursor, each at least once."""
    from promptstore.settings import load_settings
    from promptstore.store.watch import Cursor
    from promptstore.store.watch import watch as watch_log

    place = Cursor(load_settings().state_dir / "cursors", cursor) if cursor else None
    for event in watch_log(open_store(store).ledger, cursor=place, start=start, poll_s=poll_s if follow else None):
        print(event.to_line())
        sys.stdout.flush()


@app.command(rich_help_panel="Care")
def resend(as_json: JsonOption = False) -> None:
    """Tell MLflow what jobs of this machine could not, because it was away; retraining does the same by itself."""
    from promptstore.settings import load_settings
    from promptstore.tuning.job_spool import resend as resend_kept

    settings = load_settings()
    if not settings.mlflow_uri:
        raise InvalidInputError("there is no MLflow to tell: set PROMPTSTORE_MLFLOW_URI")
    reports = resend_kept(settings)
    emit(
        ({"delivered": each.delivered, "kept": each.spooled, "error": each.error} for each in reports), as_json=as_json
    )
    if failed := [each for each in reports if each.spooled]:
        raise StoreUnavailableError(str(failed[0]))
    note(f"{sum(each.delivered for each in reports)} records sent")


@app.command("import", rich_help_panel="Exchange")
def import_(
    path: Annotated[Path, typer.Argument(help="PEFT adapter folder, .npy, .safetensors or .bundle file.")],
    task_file: Annotated[Path | None, typer.Option("--task", help="Task file; a bundle brings its own.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Base model it was fitted to; a bundle names its own.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias at it in the same commit.")] = None,
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a prompt that another tool, or another store, made."""
    from promptstore.cli.exchange import publish_file

    version = publish_file(path, task_file, model=model, store=store, alias=alias, reason=reason)
    emit_one(
        {"version": str(version), "digest": version.digest},
        f"{version} published ({version.digest[:12]})",
        as_json=as_json,
    )
