"""One file of answers as it grows, so that whoever is killed while writing it can be followed by another (ADR 0024).

`OUT.partial` takes the rows, in order, and becomes `OUT` when all are there. `OUT.score.json` says beside it, before
there is a row, what the rows are of; it stays.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any, BinaryIO

from promptstore.core.digest import canonical_json
from promptstore.errors import ConflictError, CorruptError, InvalidInputError
from promptstore.store.files import write_atomically

FORMAT = 1
# What a repeated run must have in common with the first, and how people say it.
COMPARED = {
    "ref": "another ref",
    "keep": "other fields to keep",
    "has_labels": "another use of labels",
    "data": "other rows",
}


@dataclass(frozen=True, slots=True)
class Begun:
    """What a file was begun with. digest: of the version that answers all of it, whatever `ref` names later.

    data: digest of the rows. rows_at_once: rows that are answered together, so that a repeated run makes equal batches.
    """

    ref: str
    task: str
    version: int
    digest: str
    source: str
    data: str
    keep: tuple[str, ...]
    has_labels: bool
    rows_at_once: int
    format: int = FORMAT


class ScoreFile:
    """The file at `path`. rows: open for appending, `None` where the file is finished."""

    def __init__(self, path: Path, rows: BinaryIO | None) -> None:
        self.path = path
        self._rows = rows

    @property
    def is_finished(self) -> bool:
        return self._rows is None

    @property
    def beside(self) -> Path:
        return self.path.with_name(f"{self.path.name}.score.json")

    def begun(self) -> Begun | None:
        """What an earlier run began the file with, `None` if there was none.

        Raises:
            InvalidInputError: there are rows, and nothing says of what. CorruptError: what says so is damaged.
        """
        if not self.beside.exists():
            if self.is_finished or self._length():
                raise InvalidInputError(
                    f"{self.path} exists and is no file of this command's: {self.beside.name} is not beside it; name "
                    "another output, or move it away"
                )
            return None
        try:
            said = json.loads(self.beside.read_bytes())
            found = Begun(**{**said, "keep": tuple(said["keep"])})
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"{self.beside} is damaged ({error}); move it and {self.path} away") from error
        if found.format != FORMAT:
            raise CorruptError(f"{self.beside} has format {found.format}, this promptstore reads {FORMAT}; upgrade it")
        return found

    def begin(self, begun: Begun) -> None:
        """Say what the rows will be of."""
        with self._said_if_unwritable():
            write_atomically(self.beside, canonical_json({**asdict(begun), "keep": list(begun.keep)}))

    def require_same(self, begun: Begun, wanted: Begun) -> None:
        """Raises InvalidInputError: the file was begun with another request."""
        differing = [said for name, said in COMPARED.items() if getattr(begun, name) != getattr(wanted, name)]
        if differing:
            # Rows come last: they differ as well where other fields of them are read.
            raise InvalidInputError(
                f"{self.path} was begun with {differing[0]} (see {self.beside}); name another output, "
                "or remove both to begin again"
            )

    def resume(self, numbers: Sequence[int], rows_at_once: int) -> int:
        """How many of the rows are there, the end of a killed run taken back to its last full set of rows.

        numbers: of the rows, in order.
        """
        if self._rows is None:
            return len(numbers)
        self._rows.seek(0)
        end = done = kept = 0
        for read, (number, line) in enumerate(zip(numbers, self._rows, strict=False), start=1):
            if not _is_row(line, number):
                break
            end += len(line)
            if read % rows_at_once == 0 or read == len(numbers):
                done, kept = read, end
        self._rows.truncate(kept)
        return done

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows down; once this returns they survive the process and the machine.

        Raises:
            InvalidInputError: the file is finished, or cannot be written.
        """
        if self._rows is None:
            raise InvalidInputError(f"{self.path} is finished; name another output")
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        with self._said_if_unwritable():
            self._rows.write(data)
            self._rows.flush()
            os.fsync(self._rows.fileno())

    def finish(self) -> None:
        """All rows are there: the file gets its name."""
        if not self.is_finished:
            _partial(self.path).replace(self.path)
            self._rows = None

    def lines(self) -> Iterator[dict[str, Any]]:
        """The rows of a finished file."""
        with self.path.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def _length(self) -> int:
        return 0 if self._rows is None else os.fstat(self._rows.fileno()).st_size

    @contextmanager
    def _said_if_unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidInputError(
                f"{self.path} cannot be written: {error.strerror}; mend that and run the same command again, which "
                "goes on after the rows that are there"
            ) from error


@contextmanager
def score_file(path: Path) -> Iterator[ScoreFile]:
    """The file at `path`, held by this process alone while it grows.

    Raises:
        ConflictError: another process is writing it. InvalidInputError: it cannot be written.
    """
    if path.exists():
        yield ScoreFile(path, None)
        return
    try:
        rows = _partial(path).open("a+b")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}; name another output") from error
    with rows:
        try:
            flock(rows, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another process is writing {path}; wait for it, or name another output") from error
        if path.exists():  # it was finished between our two looks
            _partial(path).unlink(missing_ok=True)
            yield ScoreFile(path, None)
            return
        yield ScoreFile(path, rows)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _is_row(line: bytes, number: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["row"] == number)
    except (ValueError, KeyError, TypeError):
        return False
