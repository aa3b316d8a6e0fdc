"""Publishing what a file holds."""

from pathlib import Path
from typing import TYPE_CHECKING

from promptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from promptstore.core.state import PromptVersion


def publish_file(
    path: Path, task_file: Path | None, *, model: str | None, store: str | None, alias: str | None, reason: str
) -> "PromptVersion":
    """Publish a bundle as it is, or another prompt file for a task and a base model; `alias` then points at it.

    Raises:
        InvalidInputError: a file that is no bundle, without a task file. RefusedError: a protected alias.
    """
    from promptstore.settings import load_settings
    from promptstore.store.bundle import read_bundle
    from promptstore.store.interchange import import_prompt
    from promptstore.wiring import open_prompt_store

    said = reason or f"imported from {path.name}"
    if path.suffix == ".bundle":
        bundle = read_bundle(_read(path))
        manifest = bundle.manifest
        return open_prompt_store(load_settings(store=store)).publish(
            bundle.prompt,
            manifest.task,
            provenance=manifest.provenance,
            metrics=manifest.metrics,
            alias=alias,
            reason=said,
        )
    if task_file is None:
        raise InvalidInputError(f"{path} does not say which task it is for; add --task TASK.toml")
    from promptstore.cli.models import open_base_model
    from promptstore.tuning.task_file import read_task, without_local_paths

    prompt = import_prompt(path, open_base_model(model).fingerprint)
    task = without_local_paths(read_task(task_file))
    return open_prompt_store(load_settings(store=store)).publish(prompt, task, alias=alias, reason=said)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error
