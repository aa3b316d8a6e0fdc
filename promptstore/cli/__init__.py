"""The command line. Commands import what they need when they run, so that `--help` is instant."""

import sys

from promptstore.collector import spare_start_and_end
from promptstore.errors import PromptStoreError, next_step


def main() -> None:
    """Run the command line: exit code 0, 1 for errors of ours, 2 for usage, 130 when interrupted."""
    spare_start_and_end()
    try:
        from promptstore.cli.app import app

        app()
    except PromptStoreError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a file of this machine; stores and servers have errors of their own
        sys.exit(f"error: {error}; {next_step(error)}")
    except KeyboardInterrupt:  # before the command began, or after it ended
        _say_interrupted()
        sys.exit(130)
    except SystemExit as stop:
        if stop.code == 130:
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    print("interrupted: what was acknowledged is kept, the rest was not started", file=sys.stderr)
