"""Commands that send the log's changes to other systems."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.cli.options import JsonOption, StoreOption
from promptstore.cli.output import emit, emit_one, note
from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.outbox.delivery import OutboxPlace
    from promptstore.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Send every change of the log to another system, signed, in order.")


@app.command()
def run(
    url: Annotated[str, typer.Option(help="Where events are posted.", metavar="URL")],
    name: Annotated[str, typer.Option(help="Of this outbox: it goes on where the one of this name was.")] = "webhook",
    secret_file: Annotated[
        Path | None,
        typer.Option(help="File with the signing secret, whsec_…; PROMPTSTORE_WEBHOOK_SECRET if not given."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Operation to send, as in publish or move_alias; repeat for more.")
    ] = None,
    skip_history: Annotated[
        bool, typer.Option("--skip-history", help="A new outbox begins behind what is in the log already.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for news at the end.")] = True,
    poll_s: Annotated[float, typer.Option("--poll", min=0.05, help="Seconds between looks.")] = 1.0,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Post every operation of the log to a URL: each at least once, in order, however often either side is killed."""
    import logging

    from promptstore.outbox.delivery import Outbox
    from promptstore.outbox.webhook import Webhook
    from promptstore.settings import load_settings
    from promptstore.wiring import open_prompt_store

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    settings = load_settings(store=store)
    place = _place(settings, name)
    with Webhook(url, _secrets(settings, secret_file)) as webhook:
        ledger = open_prompt_store(settings, create=False).ledger
        note(f"outbox {name} posts to {webhook}, from commit {place.cursor.load(ledger) + 1} on")
        taken = Outbox(place, webhook).deliver(
            ledger,
            only=_operations(only or ()),
            skips_history=skip_history,
            poll_s=poll_s if follow else None,
        )
    emit_one({"outbox": name, "taken": taken}, f"{taken} event(s) taken", as_json=as_json)


@app.command()
def status(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show how far each outbox of this machine came, who delivers, and what it is stuck on."""
    from promptstore.outbox.delivery import OutboxPlace
    from promptstore.settings import load_settings
    from promptstore.wiring import open_prompt_store

    settings = load_settings(store=store)
    ledger = open_prompt_store(settings, create=False).ledger
    folder = settings.state_dir / "outbox"
    names = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    emit([_standing(OutboxPlace(folder, name), ledger) for name in names], as_json=as_json)


@app.command()
def secret(as_json: JsonOption = False) -> None:
    """Print a new signing secret; give it to the receiver, and to `outbox run` by a file or the environment."""
    from promptstore.outbox.signing import SigningSecret

    new = str(SigningSecret.new())
    emit_one({"secret": new}, new, as_json=as_json)


def _standing(place: "OutboxPlace", ledger: Any) -> dict[str, Any]:
    sender, stuck = place.sender(), place.stuck()
    at = place.cursor.load(ledger)
    return {
        "outbox": place.name,
        "commit": at,
        "behind": ledger.refresh().number - at,
        "sender": sender and sender.pid,
        "stuck": stuck and f"{stuck['event']} ({stuck['what']}) since {stuck['since']}, {stuck['tries']} tries",
        "why": stuck and stuck["error"],
    }


def _place(settings: "Settings", name: str) -> "OutboxPlace":
    from promptstore.outbox.delivery import OutboxPlace

    return OutboxPlace(settings.state_dir / "outbox", name)


def _secrets(settings: "Settings", file: Path | None) -> Any:
    from promptstore.outbox.signing import parse_secrets

    if file is not None:
        try:
            return parse_secrets(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"--secret-file {file} cannot be read: {error}") from error
    return parse_secrets(settings.webhook_secret.get_secret_value() if settings.webhook_secret else "")


def _operations(given: "list[str] | tuple[()]") -> frozenset[str]:
    from promptstore.core.operation import OPERATIONS

    if unknown := sorted(set(given) - set(OPERATIONS)):
        raise InvalidInputError(f"--only {unknown[0]}: operations are {', '.join(OPERATIONS)}")
    return frozenset(given)
