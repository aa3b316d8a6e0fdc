"""How far scoring is, on standard error: a bar on a terminal, and a plain line now and then where logs are kept."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from promptstore.batch.score import OnProgress
from promptstore.core.shown import is_terminal, unfailing

LINE_EVERY_S = 30.0


@contextmanager
def shown_progress(
    stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[OnProgress]:
    """Progress on `stream` (standard error) while the context is open. clock: monotonic seconds."""
    shown = unfailing(stream)
    if is_terminal(shown):
        with _bar(shown) as on_progress:
            yield on_progress
        return
    lines = ProgressLines(shown, clock)
    try:
        yield lines
    finally:
        lines.say()


class ProgressLines:
    """A line each time that `LINE_EVERY_S` have gone by, and one at the end, however that comes."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._line_at = 0.0
        self._line = ""

    def __call__(self, done: int, rows: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first = now, done
            self._line_at = now
        self._line = f"score: {done} of {rows} rows{_speed(done - self._first[1], now - self._first[0])}\n"
        if now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            self.say()

    def say(self) -> None:
        """Says where it is, unless that was said."""
        self._stream.write(self._line)
        self._stream.flush()
        self._line = ""


def _speed(rows: int, seconds: float) -> str:
    """Of this run, without what an earlier one had answered; nothing before there is one."""
    return f", {rows / seconds:.1f} rows/s" if rows and seconds else ""


@contextmanager
def _bar(stream: TextIO) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), refresh_per_second=4) as bars:
        bar = bars.add_task("rows", total=None)
        yield lambda done, rows: bars.update(bar, completed=done, total=rows)
