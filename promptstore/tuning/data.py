"""Where a task's labelled rows come from: files, the object store, or a data-set hub."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.objects.open import StoreSettings, open_object_store
from promptstore.tuning.row_formats import READERS, RawRow
from promptstore.tuning.rows import Rows

KINDS = (
    "a .jsonl, .csv or .parquet file, s3://bucket/key with one of these endings, or hf:<data set>[:<config>]/<split>"
)


def load_task_rows(task: TaskSpec, *, settings: StoreSettings | None = None) -> tuple[Rows, Rows]:
    """Training and validation rows of `task`, with the fields it uses and no others. Raises as `load_rows`."""
    fields = {*task.template_fields, task.target_field}
    train, validation = (
        load_rows(source, fields=fields, settings=settings) for source in (task.data.train, task.data.validation)
    )
    return train, validation


def data_digest_of(train: Rows, validation: Rows) -> str:
    """One digest for the data of a task, as a version's provenance names it."""
    return sha256_hex(canonical_json({"train": train.digest, "validation": validation.digest}))


def load_rows(
    source: str,
    *,
    fields: Collection[str] | None = None,
    optional: Collection[str] = (),
    settings: StoreSettings | None = None,
) -> Rows:
    """All rows of one source, as text. Numbers and booleans are written as JSON writes them; a null is an absent field.

    source: a `.jsonl`, `.csv` or `.parquet` path; `s3://bucket/key` with such an ending;
    `hf:<data set>[@<revision>][:<config>]/<split>`. fields: keep these alone, and refuse a row that lacks one.
    optional: keep these as well, where a row has them.

    Raises:
        InvalidInputError: a source of no known kind, or a broken row; names source, line and field.
        NotFoundError: there is no such file, object or data set.
        StoreUnavailableError: the object store or the hub does not answer.
    """
    items: list[Mapping[str, str]] = []
    numbers: list[int] = []
    for number, raw in _raw_rows(source, settings):
        items.append(_text_row(raw, fields, optional, f"{source}, row {number}"))
        numbers.append(number)
    return Rows(source, tuple(items), tuple(numbers))


def _raw_rows(source: str, settings: StoreSettings | None) -> Iterator[RawRow]:
    if source.startswith("hf:"):
        from promptstore.tuning.hub_rows import read_hub

        return read_hub(source)
    reader = READERS.get(PurePosixPath(source).suffix)
    if reader is None:
        raise InvalidInputError(f"data source {source!r} is of unknown kind; it is {KINDS}")
    return reader(_read_bytes(source, settings), source)


def _read_bytes(source: str, settings: StoreSettings | None) -> bytes:
    if "://" in source:
        from promptstore.settings import load_settings

        kind, _, place = source.partition("://")
        bucket, _, key = place.partition("/")
        return open_object_store(f"{kind}://{bucket}", settings or load_settings()).get(key)
    path = Path(source).expanduser()
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no data file {path}; correct [data] in the task file, or put it there"
        ) from error
    except OSError as error:
        raise InvalidInputError(f"data file {path} cannot be read: {error.strerror}") from error


def _text_row(
    raw: Mapping[str, Any], fields: Collection[str] | None, optional: Collection[str], where: str
) -> Mapping[str, str]:
    row = {
        name: _text(value)
        for name, value in raw.items()
        if value is not None and (fields is None or name in fields or name in optional)
    }
    if fields is not None and (missing := sorted(set(fields) - row.keys())):
        raise InvalidInputError(f"{where}: field {missing[0]!r} is missing; the row has {', '.join(sorted(raw))}")
    return row


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
