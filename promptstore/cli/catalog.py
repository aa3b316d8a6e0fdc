"""Commands about the catalogue, the SQL projection of the log."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.cli.options import JsonOption, StoreOption
from promptstore.cli.output import emit, emit_one
from promptstore.cli.store import MOMENT_HELP, open_store, read_moment
from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.catalog.catalog import Catalog
    from promptstore.catalog.search import FoundVersion, MetricRange

app = typer.Typer(no_args_is_help=True, help="Search versions in SQL; the log stays the truth.")


@app.command()
def sync(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Apply new commits of the log, in one transaction. Safe to run from many processes."""
    report = _catalog().sync(open_store(store))
    emit_one(
        {"before": report.before, "after": report.after},
        f"{report.after - report.before} new commit(s); the catalogue is at commit {report.after}",
        as_json=as_json,
    )


@app.command()
def rebuild(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Drop the catalogue and make it anew from the log."""
    report = _catalog().rebuild(open_store(store))
    emit_one(
        {"before": 0, "after": report.after}, f"rebuilt; the catalogue is at commit {report.after}", as_json=as_json
    )


@app.command()
def search(
    task: Annotated[str | None, typer.Option(help="Name, or a pattern with *.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="As in accuracy>=0.9 or f1<=0.5; repeat for more.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Name, pattern, or start of its weights' digest.")] = None,
    author: Annotated[str | None, typer.Option(help="Who published.")] = None,
    since: Annotated[str | None, typer.Option(help=f"Published then or later: {MOMENT_HELP}")] = None,
    until: Annotated[str | None, typer.Option(help=f"Published before: {MOMENT_HELP}")] = None,
    data_digest: Annotated[str | None, typer.Option(help="Start of the training data's digest.")] = None,
    alias: Annotated[str | None, typer.Option(help="One that points at the version now.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    as_json: JsonOption = False,
) -> None:
    """Find versions, newest first; run `catalog sync` before."""
    from promptstore.catalog.search import Query

    query = Query(
        task=task,
        metrics=[_metric_range(text) for text in metric or ()],
        base_model=base_model,
        author=author,
        since=read_moment(since) if since else None,
        until=read_moment(until) if until else None,
        data_digest=data_digest,
        alias=alias,
        limit=limit,
    )
    emit([_row(each) for each in _catalog().search(query)], as_json=as_json, short="digest")


def _catalog() -> "Catalog":
    from promptstore.catalog.catalog import Catalog
    from promptstore.settings import load_settings

    return Catalog(load_settings().catalog_url)


def _metric_range(text: str) -> "MetricRange":
    from promptstore.catalog.search import MetricRange

    for sign in (">=", "<="):
        name, found, bound = text.partition(sign)
        if found:
            try:
                value = float(bound)
            except ValueError:
                break
            at_least, at_most = (value, None) if sign == ">=" else (None, value)
            return MetricRange(name.strip(), at_least, at_most)
    raise InvalidInputError(f"--metric {text!r}: expected a name, >= or <=, and a number, as in accuracy>=0.9")


def _row(found: "FoundVersion") -> dict[str, Any]:
    return {
        "version": str(found),
        "digest": found.digest,
        "published": found.at,
        "by": found.author,
        "gate": found.gate,
        "aliases": list(found.aliases),
        "base_model": found.base_model,
        "metrics": dict(found.metrics),
    }
