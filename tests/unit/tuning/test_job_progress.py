"""The bars of a job: on a terminal, and nowhere else."""

import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from promptstore.testing.terminal import read_to_end
from promptstore.tuning.job_progress import shown_progress


def shown(reader: int, writer: int) -> str:
    """All that a job's progress writes to `writer`, read at the other end."""
    with os.fdopen(writer, "w", encoding="utf-8") as stream, shown_progress(stream) as progress:
        progress.say("sentiment", "held-out rows")
        progress.step("sentiment", step=3, last_step=7, loss=0.5)
    return read_to_end(reader)


@pytest.mark.parametrize(("pair", "is_shown"), [(os.openpty, True), (os.pipe, False)])
def test_bars_are_drawn_on_a_terminal_and_a_pipe_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, pair: Callable[[], tuple[int, int]], is_shown: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = shown(*pair())
    assert bool(text) == is_shown
    assert ("3/7" in text, "━" in text) == (is_shown, is_shown)


def test_a_terminal_that_hangs_up_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = os.openpty()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    with shown_progress(stream) as progress:
        progress.say("sentiment", "held-out rows")
        os.close(reader)
        progress.step("sentiment", step=3, last_step=7, loss=0.5)
    with pytest.raises(OSError, match="Input/output error"):  # what it was spared
        os.write(stream.fileno(), b"\n")
    with suppress(OSError):
        stream.close()


def test_a_job_without_a_standard_error_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with shown_progress() as progress:
        progress.say("sentiment", "held-out rows")
