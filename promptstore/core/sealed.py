"""JSON objects that prove themselves: for the objects whose name is not their digest."""

from typing import Any

from promptstore.core.digest import canonical_json, parse_json, sha256_hex
from promptstore.errors import CorruptError, InvalidInputError

_SEAL = "sha256"


def seal(value: dict[str, Any]) -> bytes:
    """Canonical JSON of `value` with one more field, `sha256`: the digest of the canonical JSON without it.

    The newest commit, say, is named by no digest anywhere, so without a seal one flipped bit in it would go unnoticed.
    """
    return canonical_json({**value, _SEAL: sha256_hex(canonical_json(value))})


def unseal(data: bytes, what: str) -> dict[str, Any]:
    """The object that `seal` wrote, without its seal; `what` names it in the error.

    Raises:
        CorruptError: not JSON, not canonical, or its content is not what was sealed.
    """
    value = parse_json(data, what)
    if not isinstance(value, dict):
        raise CorruptError(f"{what}: expected a JSON object, found {type(value).__name__}")
    value.pop(_SEAL, None)
    try:
        is_sealed = seal(value) == data
    except InvalidInputError as error:
        raise CorruptError(f"{what} holds a value that no writer writes: {error}") from error
    if not is_sealed:
        raise CorruptError(f"{what} does not match its own sha256 field: bytes were damaged or edited")
    return value
