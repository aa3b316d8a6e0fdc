"""Deploying the flows. They are the only ones to know Prefect, so this command becomes theirs."""

import importlib.util
import os
import sys

import typer

from promptstore.cli.options import JsonOption
from promptstore.errors import InvalidInputError

app = typer.Typer()
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(rich_help_panel="Set up", context_settings=PASSED_ON, add_help_option=False)
def deploy(context: typer.Context, as_json: JsonOption = False) -> None:
    """Apply the deployments of infra/prefect.yaml to the Prefect server; `deploy --help` lists the options."""
    if importlib.util.find_spec("prefect") is None:
        raise InvalidInputError("Prefect is not installed; pip install 'promptstore[flows]'")
    asked = [*context.args, *(["--json"] if as_json else [])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "flows", "deploy", *asked])  # noqa: S606 - no shell wanted
