"""Canonical bytes and their digests: the one place that decides what is hashed."""

import hashlib
import json
import re
from typing import Any

from promptstore.errors import CorruptError, InvalidInputError

DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys, no white space and shortest floats, so equal values give equal bytes.

    >>> canonical_json({"b": 1, "a": [0.5, None]})
    b'{"a":[0.5,null],"b":1}'

    Raises:
        InvalidInputError: `value` holds NaN, an infinity, a lone surrogate or something JSON cannot say.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"cannot be written as canonical JSON: {error}") from error


def parse_json(data: bytes, what: str) -> Any:
    """The JSON value in `data`; `what` names the object in the error.

    Raises:
        CorruptError: `data` is not UTF-8 JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is not valid JSON: {error}") from error
