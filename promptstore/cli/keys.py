"""Commands about keys: those that sign commits, and those that callers of a server show."""

from pathlib import Path
from typing import Annotated

import typer

from promptstore.cli.options import JsonOption
from promptstore.cli.output import emit, emit_one, note

app = typer.Typer(no_args_is_help=True, help="Make keys that sign commits, and API keys.")


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


@app.command()
def api(
    name: Annotated[str, typer.Argument(help="Whose key it is: logs and refusals say so.")],
    scopes: Annotated[
        list[str],
        typer.Option("--scope", help="infer, to ask, or admin, to run the server; repeat for both.", metavar="SCOPE"),
    ],
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="Requests in a minute; 429 beyond. No bound if not given.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Key file of `serve --api-keys` to append it to; made if there is none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. It is printed once, alone on stdout, and kept nowhere: a key file holds its digest."""
    from promptstore.serving.api_keys import ApiKey, add_key, digest_key, key_table, new_key, scopes_named

    secret = new_key()
    key = ApiKey(name, digest_key(secret), scopes_named(scopes), per_minute)
    table = key_table(key)
    if file is not None:
        add_key(file, key)
    value = {
        "name": name,
        "key": secret,
        "sha256": key.sha256,
        "scopes": sorted(key.scopes),
        "requests_per_minute": per_minute,
        "file": file and str(file),
        "table": table,
    }
    emit_one(value, secret, as_json=as_json)
    if file is None:
        note(f"nothing keeps this key; append its table to the key file of `serve --api-keys`:\n\n{table}")
    else:
        note(f"nothing keeps this key; its digest was added to {file}, which a server reads again within five seconds")


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
