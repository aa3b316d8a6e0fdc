"""Commands about signing keys."""

from pathlib import Path
from typing import Annotated

import typer

from promptstore.cli.options import JsonOption
from promptstore.cli.output import emit, emit_one

app = typer.Typer(no_args_is_help=True, help="Make and tell apart the keys that sign commits.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the two files: NAME.key (private) and NAME.pub.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to; the user's state folder if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key pair. Writers sign with NAME.key; readers trust a folder of *.pub files."""
    from promptstore.settings import load_settings
    from promptstore.store.trust import generate_key

    target = folder or load_settings().state_dir / "keys"
    key = generate_key(target, name)
    emit_one(
        {"key": key, "private": str(target / f"{name}.key"), "public": str(target / f"{name}.pub")},
        f"key {key[:12]} written: sign with PROMPTSTORE_SIGNING_KEY={target / name}.key, "
        f"trust with PROMPTSTORE_TRUSTED_KEYS={target}",
        as_json=as_json,
    )


@app.command("list")
def list_keys(
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where they are; the trusted keys, or those made here, if not given."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List public keys by name and id: an id is what commits, and errors about them, name a key by."""
    from promptstore.settings import load_settings
    from promptstore.store.trust import public_keys

    settings = load_settings()
    place = folder or settings.trusted_keys or settings.state_dir / "keys"
    rows = [
        {"name": name, "key": key, "public": str(place / f"{name}.pub")} for name, key in public_keys(place).items()
    ]
    emit(rows, as_json=as_json, short="key")
