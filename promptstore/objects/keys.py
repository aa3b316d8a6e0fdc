"""Which keys a store takes: the same rule for every driver, so that a test on one holds for all."""

from promptstore.errors import InvalidInputError

MAX_KEY_BYTES = 900
MAX_SEGMENT_BYTES = 200


def check_key(key: str) -> str:
    """`key`, if it is `/`-separated segments that every driver can keep apart.

    A segment is not empty, holds no control character or backslash and does not start with a dot: that keeps a key
    inside its folder and free of the names that file systems and the local driver make for themselves.

    Raises:
        InvalidInputError: it is not.
    """
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"object key {key!r} is not valid Unicode: {error.reason}") from error
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidInputError(f"object key {key[:40]!r}… has {len(encoded)} bytes, at most {MAX_KEY_BYTES} fit")
    for segment in key.split("/"):
        if not segment or segment.startswith("."):
            raise InvalidInputError(f"object key {key!r}: a part between slashes is empty or starts with a dot")
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            raise InvalidInputError(f"object key {key!r}: a part is longer than {MAX_SEGMENT_BYTES} bytes")
        if "\\" in segment or any(ord(each) < 32 or ord(each) == 127 for each in segment):
            raise InvalidInputError(f"object key {key!r} holds a backslash or a control character")
    return key
