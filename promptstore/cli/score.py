"""The command that answers many rows."""

from pathlib import Path
from typing import Annotated

import typer

from promptstore.cli.options import JsonOption, ModelOption, RefArgument, StoreOption
from promptstore.cli.output import emit_one

app = typer.Typer()


@app.command(rich_help_panel="Serve")
def score(
    ref: RefArgument,
    source: Annotated[
        str, typer.Argument(help=".jsonl, .csv or .parquet, here or on s3://, or hf:<data set>/<split>", metavar="ROWS")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the answers go, as JSON lines.")],
    server: Annotated[
        str | None, typer.Option(help="Ask the server there, instead of loading the model.", metavar="URL")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Field of a row to repeat beside its answer; repeat for more.")
    ] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Do not judge by the rows' labels.")] = False,
    rows_at_once: Annotated[
        int, typer.Option(min=1, help="Rows between two writes: what a killed run has to do again.")
    ] = 256,
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file or data set. Killed, the same command goes on, with the version it began with."""
    from promptstore.batch.open import run_score_job
    from promptstore.batch.score import ScoreRequest
    from promptstore.settings import load_settings

    request = ScoreRequest(ref, source, output, tuple(keep or ()), not no_labels, rows_at_once)
    summary = run_score_job(request, settings=load_settings(store=store, model=model), url=server)
    emit_one(summary.to_json(), str(summary), as_json=as_json)
