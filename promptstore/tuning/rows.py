"""Labelled rows, all text, each knowing where it came from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from promptstore.core.digest import canonical_json

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Row]):
    """The rows of one split, in order. numbers: per row its line in the file, or its index from 1."""

    source: str
    items: tuple[Row, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Row], source: str = "memory") -> "Rows":
        """Rows that come from no file."""
        return cls(source, tuple(rows), tuple(range(1, len(rows) + 1)))

    @property
    def digest(self) -> str:
        """SHA-256 over the rows in canonical form, one a line: neither format nor place takes part."""
        digest = hashlib.sha256()
        for row in self.items:
            digest.update(canonical_json(dict(row)) + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return Rows(self.source, self.items[index], self.numbers[index])
        return self.items[index]


def as_rows(rows: Sequence[Row]) -> Rows:
    return rows if isinstance(rows, Rows) else Rows.of(rows)
