"""The command that brings prompts to another base model."""

from pathlib import Path
from typing import Annotated

import typer

from promptstore.cli.options import JsonOption, ModelOption, StoreOption
from promptstore.cli.output import emit_one
from promptstore.cli.pairs import RuleOption, read_policy
from promptstore.core.ref import DEFAULT_ALIAS

app = typer.Typer()


@app.command("upgrade-base", rich_help_panel="Tune")
def upgrade_base(
    old_model: Annotated[str, typer.Argument(help="Base model of the prompts in use.", metavar="OLD_MODEL")],
    tasks: Annotated[
        list[Path] | None, typer.Argument(help="Task files (TOML); all of the store if none.", metavar="[TASK.toml]...")
    ] = None,
    aliases: Annotated[list[str] | None, typer.Option("--alias", help="What is brought over; repeat for more.")] = None,
    minimum: Annotated[float | None, typer.Option(help="Every task's metric must reach this.")] = None,
    max_drop: Annotated[float, typer.Option(help="How far a metric may lie behind the old version's.")] = 0.05,
    rules: RuleOption = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Release the tasks that pass even if others do not.")
    ] = False,
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tune on another base model what the aliases name, judge it on the same rows, and release all in one commit."""
    from promptstore.settings import load_settings
    from promptstore.tuning.job_upgrade import UpgradeRequest, run_upgrade_job
    from promptstore.tuning.upgrade_release import release_upgrade
    from promptstore.wiring import open_prompt_store

    settings = load_settings(store=store, model=model)
    prompts = open_prompt_store(settings, create=False)
    request = UpgradeRequest(
        old_model,
        tasks=[str(task) for task in tasks or ()],
        aliases=aliases or (DEFAULT_ALIAS,),
        policy=read_policy(rules, minimum=minimum, max_drop=max_drop),
    )
    upgrade = run_upgrade_job(request, settings=settings, store=prompts)
    result = release_upgrade(prompts, upgrade, allow_partial=allow_partial)
    starts = {each.task: each.start for each in upgrade.tasks}
    facts = {"model": upgrade.model, "starts": starts, "released": result.released, "refused": result.refused}
    emit_one(facts, str(result), as_json=as_json)
    result.require_released()
