"""Commands about task files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptstore.cli.options import JsonOption, ModelOption, TaskFilesArgument
from promptstore.cli.output import emit, emit_one, note
from promptstore.errors import InvalidInputError, PromptStoreError

if TYPE_CHECKING:
    from promptstore.lm.frozen import FrozenModel

app = typer.Typer(no_args_is_help=True, help="Scaffold and check task files.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the task: a-z, 0-9, '-', '_', '.'.")],
    kind: Annotated[str, typer.Option(help="classification or generation")] = "classification",
    path: Annotated[Path | None, typer.Option("--path", help="File to write; NAME.toml if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a task file with every key explained."""
    from promptstore.tuning.task_file import new_task_text

    target = path or Path(f"{name}.toml")
    text = new_task_text(name, kind)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInputError(f"{target} exists; it was not touched. Give another --path") from None
    except OSError as error:
        raise InvalidInputError(f"{target} cannot be written: {error.strerror}") from error
    emit_one(
        {"path": str(target)}, f"{target} written; fill it in, then: promptstore task check {target}", as_json=as_json
    )


@app.command()
def check(
    paths: TaskFilesArgument,
    model: ModelOption = None,
    without_model: Annotated[
        bool, typer.Option("--without-model", help="Skip the checks that need the base model's tokenizer.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Explain what is wrong with task files and their data, row and field named."""
    from promptstore.cli.models import open_base_model

    base = None if without_model else open_base_model(model)
    findings = [finding for path in paths for finding in _findings(path, base)]
    emit(findings, as_json=as_json)
    errors = sum(each["severity"] == "error" for each in findings)
    if errors:
        raise InvalidInputError(f"{errors} of {len(findings)} findings must be mended before tuning")
    note(f"{len(paths)} task file(s) checked: ready to tune")


def _findings(path: Path, base: "FrozenModel | None") -> list[dict[str, Any]]:
    """A file that cannot be read, or whose data cannot, is a finding under its path; the others are still checked."""
    from promptstore.lm.encoding import TaskEncoder
    from promptstore.tuning.data import load_rows
    from promptstore.tuning.task_check import Finding, check_task
    from promptstore.tuning.task_file import read_task

    try:
        spec = read_task(path)
        # All fields, so that one which is missing is a finding like any other.
        splits = {"train": load_rows(spec.data.train), "validation": load_rows(spec.data.validation)}
        encoder = TaskEncoder(spec, base) if base is not None else None
        return [{"task": spec.name, **each.to_json()} for each in check_task(spec, splits, encoder)]
    except PromptStoreError as error:
        return [{"task": str(path), **Finding("error", str(error)).to_json()}]
