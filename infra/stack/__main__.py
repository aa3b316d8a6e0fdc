"""The local stack: every server that promptstore works with, as plain processes of this machine on loopback.

    python -m infra.stack up [--free-ports] | down | status     [--folder FOLDER]

Its data, logs, ports and passwords lie in one folder and stay there. Where there is Docker: infra/compose.yaml.
"""

import argparse
import signal
import sys
from pathlib import Path

from infra.stack.place import StackPlace
from infra.stack.stack import down, status, up
from promptstore.errors import PromptStoreError
from promptstore.testing.servers import MissingServerError

FOLDER = Path("build") / "stack"


def main() -> int:
    """Exit code 0 if everything asked for is so, 1 if not (the last lines on standard error say why), 130 by Ctrl-C."""
    given = _parser().parse_args()
    place = StackPlace(given.folder.absolute())
    if sys.platform != "linux":
        return _fail("the stack keeps track of its processes on Linux only; use infra/compose.yaml", 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if given.command == "up":
            up(place, _say, has_free_ports=given.free_ports)
        elif given.command == "down":
            down(place, _say)
            return 0
        return _show(place)
    except KeyboardInterrupt:
        return _fail("interrupted; repeating it is safe", 130)
    except MissingServerError as error:
        return _fail(
            f"{error}; on Debian infra/install-test-servers.sh installs what is missing. Nothing was started", 1
        )
    except PromptStoreError as error:
        return _fail(str(error), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything lies; build/stack if not given")
    parser.add_argument(
        "--free-ports", action="store_true", help="take free ports instead of the usual ones, and keep them"
    )
    return parser


def _show(place: StackPlace) -> int:
    standings = status(place)
    print(f"{'service':10}{'state':15}{'process':9}address")
    for each in standings:
        print(f"{each.service.name:10}{each.word:15}{each.pid or '-':<9}{each.service.address}")
    print(f"logs: {place.folder / 'logs'}")
    is_up = all(each.is_ready for each in standings)
    if is_up:
        print(f"to work on it:  source {place.environment_file}")
    return 0 if is_up else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
