"""Rows of a data set on a hub, through the `datasets` library and its cache."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from promptstore.errors import InvalidInputError, NotFoundError, StoreUnavailableError
from promptstore.tuning.row_formats import RawRow

FORM = re.compile(r"hf:(?P<name>[^:@]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^/]+))?/(?P<split>[^/]+)")


def read_hub(source: str) -> Iterator[RawRow]:
    """Rows of `hf:<data set>[@<revision>][:<config>]/<split>`, class ids as their names, numbered from 1.

    Raises:
        InvalidInputError: `source` is not of that form, or the data set has no such config or split.
        NotFoundError: there is no such data set, or the `datasets` library is not installed.
        StoreUnavailableError: the hub does not answer and the cache does not hold the data set.
    """
    form = FORM.fullmatch(source)
    if form is None:
        raise InvalidInputError(
            f"data source {source!r}: expected hf:<data set>[@<revision>][:<config>]/<split>, such as hf:sst2/train"
        )
    table = _load(source, form["name"], form["config"], form["split"], form["revision"])
    names = {
        column: feature.names for column, feature in table.features.items() if type(feature).__name__ == "ClassLabel"
    }
    for number, raw in enumerate(table, start=1):
        row: dict[str, Any] = dict(raw)
        for column, classes in names.items():
            # -1 marks a row without label, as the test splits of GLUE have.
            row[column] = classes[row[column]] if row[column] is not None and row[column] >= 0 else None
        yield number, row


def _load(source: str, name: str, config: str | None, split: str, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise NotFoundError(f"{source} needs the datasets library; pip install 'promptstore[tuning]'") from error
    try:
        with _bars_on_terminals_only(datasets):
            return datasets.load_dataset(name, config, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise NotFoundError(f"there is no data set {source}, or it is private (set HF_TOKEN): {error}") from error
    except ConnectionError as error:
        raise StoreUnavailableError(
            f"{source}: the hub cannot be reached and the cache has no copy: {error}"
        ) from error
    except (ValueError, OSError) as error:
        raise InvalidInputError(f"data source {source} cannot be loaded: {error}") from error


@contextmanager
def _bars_on_terminals_only(datasets: Any) -> Iterator[None]:
    """As `promptstore.lm.progress.bars_on_terminals_only`, for the bars of datasets: they have their own switch."""
    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
