"""The command line. Commands import what they need when they run, so that `--help` is instant."""

import sys

from promptstore.errors import PromptStoreError


def main() -> None:
    """Run the command line: exit code 0, 1 for errors of ours, 2 for usage, 130 when interrupted."""
    from promptstore.cli.app import app

    try:
        app()
    except PromptStoreError as error:
        sys.exit(f"error: {error}")
    except SystemExit as stop:
        if stop.code == 130:
            print("interrupted: what was acknowledged is kept, the rest was not started", file=sys.stderr)
        raise
