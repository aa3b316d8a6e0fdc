"""Moments in time as text that sorts: RFC 3339 in UTC with microseconds."""

import re
from datetime import UTC, datetime

from promptstore.errors import CorruptError, InvalidInputError

_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def format_instant(moment: datetime) -> str:
    """`moment` in the one form the store writes; equal moments give equal text, and text sorts as time does.

    >>> format_instant(datetime(2026, 3, 1, tzinfo=UTC))
    '2026-03-01T00:00:00.000000Z'

    Raises:
        InvalidInputError: `moment` has no time zone, or is before year 1 or after year 9999 in UTC.
    """
    if moment.tzinfo is None:
        raise InvalidInputError(
            f"time {moment.isoformat()} has no time zone; add one, as in {moment.isoformat()}+00:00"
        )
    try:
        return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    except OverflowError as error:
        raise InvalidInputError(f"time {moment.isoformat()} is out of range in UTC; give another") from error


def parse_instant(text: str, what: str) -> datetime:
    """The moment in `text`, which `format_instant` wrote.

    Raises:
        CorruptError: another form, or no such day or hour.
    """
    if _PATTERN.fullmatch(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    raise CorruptError(f"{what} is {text!r}, expected a time like 2026-03-01T00:00:00.000000Z")
