"""Which rows a fit may look at, and which are kept for judging what came out."""

from collections.abc import Collection

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.errors import InvalidInputError
from promptstore.tuning.rows import Row, Rows

# One validation row in three picks the best step of a fit; two in three are kept for the final word.
SELECTION_SHARE = 3
MOST_HELD_OUT = 1000


def split_validation(
    rows: Rows, *, by: Collection[str] | None = None, most_held_out: int = MOST_HELD_OUT
) -> tuple[Rows, Rows]:
    """The rows that pick the best step of a fit, and the held-out rows that no fit ever sees.

    A row's own content decides its side, so it stays there whatever is added, reordered or repeated, in every job and
    for every seed: versions tuned a year apart are judged on rows that neither has seen.

    by: the fields that a fit of the task reads, where the rows have others as well, which must move no row to the other
    side. most_held_out: of more than so many, those whose digests come first.

    Raises:
        InvalidInputError: too few rows for two sides.
    """
    digests = [_digest(row, by) for row in rows.items]
    selection = [at for at, digest in enumerate(digests) if _picks_steps(digest)]
    held_out = [at for at, digest in enumerate(digests) if not _picks_steps(digest)]
    if not selection or not held_out:
        raise InvalidInputError(
            f"{rows.source} has {len(rows)} validation rows, too few to pick a step on some and judge the prompt on "
            "others; give it at least 20 different ones"
        )
    kept = sorted(sorted(held_out, key=lambda at: (digests[at], at))[:most_held_out])
    return _picked(rows, selection), _picked(rows, kept)


def _digest(row: Row, by: Collection[str] | None) -> str:
    return sha256_hex(canonical_json({name: text for name, text in row.items() if by is None or name in by}))


def _picks_steps(digest: str) -> bool:
    return int(digest[-8:], 16) % SELECTION_SHARE == 0


def _picked(rows: Rows, places: list[int]) -> Rows:
    return Rows(rows.source, tuple(rows.items[at] for at in places), tuple(rows.numbers[at] for at in places))
