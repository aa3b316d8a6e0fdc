"""Options that many commands share."""

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    str | None, typer.Option("--store", help="Store URL; PROMPTSTORE_STORE if not given.", metavar="URL")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]
AlwaysJsonOption = Annotated[bool, typer.Option("--json", help="What it says is JSON lines with and without this.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why; the log keeps it.")]
AliasOption = Annotated[str, typer.Option("--alias", help="Which alias.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Base model: hf:<repo>[@revision], a folder, a .gguf file or asset:smollm2-135m."),
]
RefArgument = Annotated[str, typer.Argument(help="task, task@alias, task:number or task@sha256:digest", metavar="REF")]
TaskArgument = Annotated[str, typer.Argument(help="Name of a task in the store.", metavar="TASK")]
TaskFilesArgument = Annotated[list[Path], typer.Argument(help="Task files (TOML).", metavar="TASK.toml...")]
