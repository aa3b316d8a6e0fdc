"""Commands that try a version on a share of an alias's traffic, or on the side."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from promptstore.cli.options import AliasOption, JsonOption, ReasonOption, RefArgument, StoreOption, TaskArgument
from promptstore.cli.output import emit, emit_one
from promptstore.cli.store import open_store, require_reason
from promptstore.core.ref import DEFAULT_ALIAS
from promptstore.core.state import PromptVersion

app = typer.Typer(no_args_is_help=True, help="Try a version on a share of an alias's traffic, or in its shadow.")


@app.command()
def start(
    ref: RefArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    share: Annotated[float, typer.Option(help="Part of the alias's callers that get it, above 0 and at most 1.")] = 0.1,
    shadow: Annotated[bool, typer.Option("--shadow", help="Ask it on the side; nobody gets its answers.")] = False,
    min_answers: Annotated[int, typer.Option(help="Answers before a replica judges it.")] = 100,
    max_error_rate: Annotated[float, typer.Option(help="Give it up above this share of failed answers.")] = 0.02,
    max_latency_ratio: Annotated[float, typer.Option(help="Give it up above this ratio of median latencies.")] = 2.0,
    min_agreement: Annotated[float | None, typer.Option(help="Give it up below this share of equal answers.")] = None,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Also without a passing gate; needs a reason.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin: servers that follow the store send it traffic, and give it up by themselves when it breaks a bound."""
    from promptstore.store.rollout import Bounds, start_rollout

    require_reason(reason, force=force)
    bounds = Bounds(min_answers, max_error_rate, max_latency_ratio, min_agreement)
    rollout = start_rollout(
        open_store(store),
        ref,
        alias,
        mode="shadow" if shadow else "share",
        share=1.0 if shadow else share,
        bounds=bounds,
        reason=reason,
        force=force,
    )
    what = "in the shadow of" if shadow else f"for {share:.0%} of"
    emit_one(
        asdict(rollout),
        f"{rollout.task}:{rollout.number} is on trial {what} {rollout.task}@{rollout.alias}",
        as_json=as_json,
    )


@app.command()
def status(
    server: Annotated[str | None, typer.Option(help="URL of a replica, to see how the trials do there.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every version on trial; with --server, what that replica counted of it so far."""
    if server is not None:
        from promptstore.client import Client
        from promptstore.settings import load_settings

        settings = load_settings()
        key = settings.api_key.get_secret_value() if settings.api_key else None
        with Client(server, api_key=key) as client:
            emit(client.trials(), as_json=as_json)
        return
    from promptstore.store.rollout import active_rollouts

    emit((asdict(each) for each in active_rollouts(open_store(store).state).values()), as_json=as_json)


@app.command()
def finish(
    task: TaskArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Also without a passing gate; needs a reason.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the trial well: point the alias at the version on trial."""
    from promptstore.store.rollout import finish_rollout

    require_reason(reason, force=force)
    version = finish_rollout(open_store(store), task, alias, reason=reason, force=force)
    emit_one(_row(version, alias), f"{task}@{alias} -> {version} ({version.digest[:12]})", as_json=as_json)


@app.command()
def abort(
    task: TaskArgument,
    alias: AliasOption = DEFAULT_ALIAS,
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the trial: the alias stays where it is."""
    from promptstore.store.rollout import abort_rollout

    version = abort_rollout(open_store(store), task, alias, why=reason)
    emit_one(_row(version, alias), f"{version} is no longer on trial for {task}@{alias}", as_json=as_json)


def _row(version: PromptVersion, alias: str) -> dict[str, Any]:
    return {"task": version.task, "alias": alias, "version": version.number, "digest": version.digest}
