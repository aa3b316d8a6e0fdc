"""Bytes of a data file become rows of raw values: JSONL, CSV, Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from promptstore.errors import InvalidInputError

RawRow = tuple[int, Mapping[str, Any]]


def read_jsonl(data: bytes, source: str) -> Iterator[RawRow]:
    """One JSON object a line; blank lines are skipped. Numbers are those of lines, from 1."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except ValueError as error:
            raise InvalidInputError(f"{source}, line {number}: not a line of UTF-8 JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidInputError(f"{source}, line {number}: expected a JSON object, found {type(value).__name__}")
        yield number, value


def read_csv(data: bytes, source: str) -> Iterator[RawRow]:
    """Comma-separated with a header line (RFC 4180). Numbers are those of the line a row ends on."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidInputError(f"{source}, line {line}: not UTF-8: {error.reason}; save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise InvalidInputError(f"{source}, line 1: a column name is repeated: {header}")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise InvalidInputError(
                    f"{source}, line {reader.line_num}: {len(values)} fields, the header has {len(header)}; "
                    "quote fields that hold commas or line ends"
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InvalidInputError(f"{source}, line {reader.line_num}: not valid CSV: {error}") from error


def read_parquet(data: bytes, source: str) -> Iterator[RawRow]:
    """A Parquet table. Numbers are row indices from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data))
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{source} is not a Parquet file that can be read: {error}") from error


READERS: Mapping[str, Callable[[bytes, str], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
