"""Reading objects that can be checked, through passing damage of the transport."""

from collections.abc import Callable
from typing import TypeVar

from promptstore.core.digest import sha256_hex
from promptstore.errors import CorruptError
from promptstore.store.objects import ObjectStore

Value = TypeVar("Value")
_TRIES = 3


def read(objects: ObjectStore, key: str, parse: Callable[[bytes], Value]) -> Value:
    """What `parse` makes of an object. A truncated or damaged answer is asked for again before it is believed.

    Raises:
        NotFoundError: there is no such object.
        CorruptError: `parse` refuses the bytes time after time: they are stored like that.
    """
    for _ in range(_TRIES - 1):
        try:
            return parse(objects.get(key))
        except CorruptError:
            continue
    try:
        return parse(objects.get(key))
    except CorruptError as error:
        raise CorruptError(f"{objects.url}/{key}: {error}") from error


def read_digest(objects: ObjectStore, key: str, digest: str) -> bytes:
    """The object at `key`, whose SHA-256 is `digest`. Raises as `read` does."""

    def check(data: bytes) -> bytes:
        if (found := sha256_hex(data)) != digest:
            raise CorruptError(f"its SHA-256 is {found[:12]}…, expected {digest[:12]}…; run `promptstore verify`")
        return data

    return read(objects, key, check)
