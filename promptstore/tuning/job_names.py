"""What people and schedules call a job's tasks, and what they are. Imports no torch."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.store.prompt_store import PromptStore
from promptstore.tuning.task_file import read_task


def task_names(given: Sequence[str]) -> list[str]:
    """`given`, which names task files, folders of them or tasks in the store, with each folder's files in its place.

    Raises:
        InvalidInputError: a folder without a task file.
    """
    names: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            names.append(name)
            continue
        files = sorted(str(file) for file in Path(name).glob("*.toml"))
        if not files:
            raise InvalidInputError(f"folder {name} holds no task file (*.toml)")
        names.extend(files)
    return names


def find_task(name: str, store: PromptStore) -> TaskSpec:
    """The task in a file, or as the newest version of a task in the store has it.

    Raises:
        NotFoundError: neither such a file nor such a task.
        InvalidInputError: the task is in the store, but its data lay on the machine that tuned it: give the file.
    """
    if name.endswith(".toml") or Path(name).is_file():
        return read_task(Path(name))
    versions = [each for each in store.refresh().task(name).versions if not each.is_expired]
    if not versions:
        raise NotFoundError(f"every version of {name} is expired; give the task's file")
    task = store.manifest(versions[-1].digest).task
    for source in (task.data.train, task.data.validation):
        if "://" not in source and not source.startswith("hf:"):
            raise InvalidInputError(f"task {name} was tuned on a local file, {source}; give the task's file")
    return task


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with `-dirty` if files differ from it; `None` outside a repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
