"""What tasks, aliases and keys may be called."""

import re

from promptstore.errors import InvalidInputError

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?")
KEY_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


def check_name(name: str, what: str) -> None:
    """Refuse names that could not be a path segment, a URL segment and a metric label alike."""
    if not is_name(name):
        raise InvalidInputError(
            f"{what} {name!r} is not valid: use 1 to 64 of a-z, 0-9, '-', '_' and '.', "
            "starting and ending with a letter or digit"
        )


def check_key_name(name: str) -> None:
    """Refuse names that could not be a file name, or that a key file would have to quote."""
    if not KEY_NAME_PATTERN.fullmatch(name):
        raise InvalidInputError(
            f"key name {name!r} is not valid: use 1 to 64 letters, digits, '.', '_', '@' and '-', "
            "starting with a letter or digit"
        )


def is_name(name: str) -> bool:
    return NAME_PATTERN.fullmatch(name) is not None
