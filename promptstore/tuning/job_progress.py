"""Progress of a job on a terminal's standard error; silence where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from promptstore.core.shown import is_terminal, unfailing

if TYPE_CHECKING:
    from rich.progress import TaskID


class JobProgress(Protocol):
    """Told how far each prompt of a job is."""

    def say(self, task: str, doing: str) -> None:
        """What is being done for `task` now, in a word or two."""

    def step(self, task: str, *, step: int, last_step: int, loss: float) -> None:
        """A step of the fit is done."""


class SilentProgress:
    """For output that is no terminal."""

    def say(self, task: str, doing: str) -> None: ...

    def step(self, task: str, *, step: int, last_step: int, loss: float) -> None: ...


class BarProgress:
    """One bar for each prompt."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[doing]:22}"),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self._ids: dict[str, TaskID] = {}

    def say(self, task: str, doing: str) -> None:
        self.bars.update(self._bar(task), doing=doing)

    def step(self, task: str, *, step: int, last_step: int, loss: float) -> None:
        self.bars.update(self._bar(task), completed=step, total=last_step, doing=f"loss {loss:.3f}")

    def _bar(self, task: str) -> "TaskID":
        if task not in self._ids:
            self._ids[task] = self.bars.add_task(task, total=None, doing="")
        return self._ids[task]


@contextmanager
def shown_progress(stream: TextIO | None = None) -> Iterator[JobProgress]:
    """Bars on `stream` (standard error) while the context is open, if it is a terminal."""
    shown = unfailing(stream)
    if not is_terminal(shown):
        yield SilentProgress()
        return
    progress = BarProgress(shown)
    with progress.bars:
        yield progress
