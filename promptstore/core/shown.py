"""Streams that work is shown on while it goes on. None of it ends because nobody can read them."""

import io
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast


def unfailing(stream: TextIO | None = None) -> TextIO:
    """`stream` (standard error), left alone from the first time on that it cannot be written to."""
    return cast("TextIO", _Unfailing(stream or sys.stderr or io.StringIO()))  # `2>&-` leaves none


def is_terminal(stream: TextIO) -> bool:
    return not stream.closed and stream.isatty()


class _Unfailing:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            if not self._is_lost:
                write()
        except (OSError, ValueError):  # its reader has gone, or the disk is full; it was closed
            self._is_lost = True
