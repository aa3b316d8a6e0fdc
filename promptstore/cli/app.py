"""The command tree."""

from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from promptstore.cli import (
    assets,
    care,
    catalog,
    deploy,
    keys,
    outbox,
    rollout,
    score,
    serve,
    store,
    task,
    tune,
    upgrade,
)
from promptstore.cli.demo import command as demo
from promptstore.cli.options import JsonOption, ModelOption, StoreOption
from promptstore.cli.output import emit
from promptstore.errors import PromptStoreError

app = typer.Typer(
    name="promptstore",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Tune, understand, version, promote and serve soft prompts, correct in any batch.",
)
app.add_typer(demo.app)
app.add_typer(tune.app)
app.add_typer(upgrade.app)
app.add_typer(store.app)
app.add_typer(care.app)
app.add_typer(serve.app)
app.add_typer(score.app)
app.add_typer(deploy.app)
app.add_typer(catalog.app, name="catalog", rich_help_panel="Look")
app.add_typer(rollout.app, name="rollout", rich_help_panel="Change")
app.add_typer(outbox.app, name="outbox", rich_help_panel="Exchange")
app.add_typer(task.app, name="task", rich_help_panel="Tune")
app.add_typer(assets.app, name="assets", rich_help_panel="Set up")
app.add_typer(keys.app, name="keys", rich_help_panel="Set up")


def _print_version(*, is_asked: bool) -> None:
    if is_asked:
        print(f"promptstore {installed_version('promptstore')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda asked: _print_version(is_asked=asked), is_eager=True)
    ] = False,
) -> None:
    """Tune, understand, version, promote and serve soft prompts, correct in any batch."""


@app.command(rich_help_panel="Look")
def devices(as_json: JsonOption = False) -> None:
    """Show the GPUs that runs on this machine may hold, and who holds each."""
    from promptstore.cli.output import note
    from promptstore.settings import load_settings
    from promptstore.tuning.settings_device import settings_gpus

    found = settings_gpus(load_settings())
    emit(
        (
            {"gpu": name, "held": bool(by), "by": by and by.what, "process": by and by.pid, "since": by and by.since}
            for name, by in found.items()
        ),
        as_json=as_json,
    )
    if not found:
        note("no GPU: runs work on the CPU, and wait for nobody")


@app.command(rich_help_panel="Set up")
def doctor(store: StoreOption = None, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Look at versions, devices, store, model, MLflow and Prefect; say how to mend what is wrong."""
    from promptstore.cli.doctor import examine
    from promptstore.settings import load_settings

    findings = list(examine(load_settings(store=store, model=model)))
    emit([each.to_json() for each in findings], as_json=as_json)
    if bad := [each.what for each in findings if not each.is_well]:
        raise PromptStoreError(f"not well: {', '.join(bad)}; the column `fix` says what to do")
