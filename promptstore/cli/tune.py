"""Commands that fit prompts and judge them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.cli.options import (
    AliasOption,
    JsonOption,
    ModelOption,
    ReasonOption,
    RefArgument,
    StoreOption,
    TaskFilesArgument,
)
from promptstore.cli.output import emit, emit_one, note
from promptstore.cli.pairs import RuleOption, read_pairs, read_policy
from promptstore.core.ref import DEFAULT_ALIAS
from promptstore.errors import PromptStoreError, RefusedError

if TYPE_CHECKING:
    from promptstore.tuning.job_result import TunedTask

app = typer.Typer()


@app.command(rich_help_panel="Tune")
def tune(
    tasks: TaskFilesArgument,
    settings_of_fit: Annotated[
        list[str] | None, typer.Option("--set", help="As in steps=400 or learning_rate=0.1; repeat for more.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Find learning rate and initialiser first, for up to three times the time.")
    ] = False,
    job: Annotated[str | None, typer.Option(help="Name of this work: repeated under the same name it goes on.")] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit one prompt per task, together on one frozen model; evaluate, log to MLflow, publish."""
    import secrets

    from promptstore.settings import load_settings
    from promptstore.tuning.job_open import run_tune_job
    from promptstore.wiring import open_prompt_store

    settings = load_settings(store=store, model=model)
    result = run_tune_job(
        [str(task) for task in tasks],
        job=job or f"cli-{secrets.token_hex(6)}",
        settings=settings,
        store=open_prompt_store(settings),
        overrides=read_pairs(settings_of_fit or (), "--set", "steps=400"),
        searches=search,
    )
    of_members = ("members", "member_average", "member_best") if any(each.members > 1 for each in result.tasks) else ()
    columns = ("task", "untuned", "text_prompt", "tuned", *of_members, "version", "digest", "seconds", "failure")
    emit([_row(each) for each in result.tasks], as_json=as_json, columns=columns)
    if result.failures:
        raise PromptStoreError("; ".join(result.failures))


@app.command(rich_help_panel="Tune")
def gate(
    ref: RefArgument,
    task_file: Annotated[
        Path | None,
        typer.Option("--task", help="Task file with the held-out rows; the manifest's source if not given."),
    ] = None,
    alias: AliasOption = DEFAULT_ALIAS,
    minimum: Annotated[float | None, typer.Option(help="The task's metric must reach this.")] = None,
    rules: RuleOption = None,
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a version with what the alias points at, on the same held-out rows; the verdict goes into the log."""
    from promptstore.settings import load_settings
    from promptstore.tuning.job_open_gate import run_gate_job
    from promptstore.wiring import open_prompt_store

    settings = load_settings(store=store, model=model)
    outcome = run_gate_job(
        ref,
        settings=settings,
        store=open_prompt_store(settings, create=False),
        alias=alias,
        task_file=str(task_file) if task_file else None,
        policy=read_policy(rules, minimum=minimum),
    )
    facts = {"version": str(outcome.ref), "alias": outcome.alias, "against": outcome.against}
    emit_one({**facts, **outcome.verdict.to_json()}, str(outcome), as_json=as_json)
    if not outcome.has_passed:
        raise RefusedError(f"{ref} did not pass the gate; {alias} was not moved")


@app.command(rich_help_panel="Tune")
def explain(
    ref: RefArgument,
    k: Annotated[int, typer.Option("-k", min=2, help="Nearest tokens to show of each virtual token.")] = 5,
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a prompt says: nearest tokens, how tight they lie, label words that persist, duplicates."""
    from promptstore.cli.models import open_base_model
    from promptstore.cli.store import open_store
    from promptstore.settings import load_settings
    from promptstore.tuning.explain import explain as read

    base = open_base_model(model, load_settings(store=store))
    pulled = open_store(store).pull(ref, for_model=base.fingerprint)
    readings = [read(base, member, pulled.manifest.task, k=k) for member in pulled.prompt.members]
    if as_json:
        emit([{"version": str(pulled.version), **each.to_json()} for each in readings], as_json=True)
        return
    for at, reading in enumerate(readings, start=1):
        emit(reading.to_table(), as_json=False)
        which = f"member {at} of {len(readings)}: " if len(readings) > 1 else ""
        note(
            f"{which}tightness of {reading.control.vectors} random vectors: {reading.control.tightness_mean:.3f} "
            f"± {reading.control.tightness_deviation:.3f}; {reading.distinct_virtual_tokens} of "
            f"{len(reading.virtual_tokens)} virtual tokens are distinct. {reading.caution}"
        )


@app.command(rich_help_panel="Tune")
def combine(
    refs: Annotated[list[str], typer.Argument(help="Versions of one task, as in sst2:3 sst2:4 sst2:5.")],
    by: Annotated[str, typer.Option(help="mean: the likeliest label on average; vote: the label most say.")] = "mean",
    reason: ReasonOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish several versions of one task as one that answers for them all; gate it before it is promoted."""
    from promptstore.cli.store import open_store
    from promptstore.store.combining import combine_versions

    version = combine_versions(open_store(store), refs, by, reason=reason)
    facts = {"version": str(version), "digest": version.digest, "members": refs}
    emit_one(facts, f"{version} answers for {', '.join(refs)}", as_json=as_json)


def _row(task: "TunedTask") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(task)
