"""The command `promptstore demo`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from promptstore.cli.options import ModelOption
from promptstore.cli.output import emit

app = typer.Typer()


@app.command(rich_help_panel="Set up")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Keeps everything the demo writes.")] = Path(
        "promptstore-demo"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Less data, fewer steps, the same path.")] = False,
    model: ModelOption = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the facts to this file.")] = None,
) -> None:
    """Tune, publish, gate, promote, serve, switch and roll back two real tasks; five to nine minutes on two cores."""
    from promptstore.cli.demo.place import ENVIRONMENT_FILE
    from promptstore.cli.demo.report import next_steps, require_writable, write_json
    from promptstore.cli.demo.scenario import run_demo

    if json_path is not None:
        require_writable(json_path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers of the demo must not outlive it
    report = run_demo(folder, quick=quick, model=model)
    emit(report.table(), as_json=False)
    print()
    print(
        f"{report.requests} requests, {report.failed_requests} failed; switched in flight: "
        f"{'yes' if report.switched_in_flight else 'no'}; rolled back: {'yes' if report.rolled_back else 'no'}; "
        f"{report.seconds:.0f} s in all"
    )
    print()
    print(next_steps(folder / ENVIRONMENT_FILE))
    if json_path is not None:
        write_json(report, json_path)
