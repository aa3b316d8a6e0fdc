"""How far scoring is: a bar on a terminal, plain lines now and then elsewhere."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import pytest

from promptstore.batch.progress import LINE_EVERY_S, shown_progress
from promptstore.testing.terminal import read_to_end


@pytest.mark.parametrize(("pair", "is_terminal"), [(os.openpty, True), (os.pipe, False)])
def test_a_bar_is_drawn_on_a_terminal_and_a_pipe_gets_a_plain_line(
    monkeypatch: pytest.MonkeyPatch, pair: Callable[[], tuple[int, int]], is_terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pair()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, shown_progress(stream) as on_progress:
        on_progress(3, 7)
    said = read_to_end(reader)
    assert ("3/7" in said, "━" in said, "\x1b" in said) == (is_terminal,) * 3
    if not is_terminal:
        assert said == "score: 3 of 7 rows\n"


@pytest.mark.parametrize("pair", [os.openpty, os.pipe])
def test_a_reader_that_leaves_ends_no_run(monkeypatch: pytest.MonkeyPatch, pair: Callable[[], tuple[int, int]]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pair()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    with shown_progress(stream, clock=count(step=LINE_EVERY_S).__next__) as on_progress:
        on_progress(1, 7)
        os.close(reader)
        for done in range(2, 8):
            on_progress(done, 7)
    with pytest.raises(OSError, match=r"Broken pipe|Input/output error"):  # what it was spared
        os.write(stream.fileno(), b"\n")
    with suppress(OSError):
        stream.close()


def test_a_stream_that_was_closed_ends_no_run() -> None:
    stream = io.StringIO()
    stream.close()
    with shown_progress(stream) as on_progress:
        on_progress(7, 7)


def lines(*told: tuple[float, int], rows: int = 1000) -> list[str]:
    """What a log has of a run that tells at each of these seconds how many rows are done."""
    stream, now = io.StringIO(), [0.0]
    with shown_progress(stream, clock=lambda: now[0]) as on_progress:
        for at, done in told:
            now[0] = at
            on_progress(done, rows)
    assert stream.getvalue() == "" or stream.getvalue().endswith("\n")
    return stream.getvalue().splitlines()


def test_a_line_comes_each_time_that_half_a_minute_has_gone_by_and_one_at_the_end() -> None:
    every_second = [(100.0 + second, 10 * second) for second in range(101)]
    assert LINE_EVERY_S == 30
    assert lines(*every_second) == [
        "score: 300 of 1000 rows, 10.0 rows/s",
        "score: 600 of 1000 rows, 10.0 rows/s",
        "score: 900 of 1000 rows, 10.0 rows/s",
        "score: 1000 of 1000 rows, 10.0 rows/s",
    ]


def test_rows_that_come_seldom_have_a_line_each_and_the_last_is_said_once() -> None:
    assert lines((0, 0), (45, 500), (120, 1000)) == [
        "score: 500 of 1000 rows, 11.1 rows/s",
        "score: 1000 of 1000 rows, 8.3 rows/s",
    ]


def test_what_an_earlier_run_had_answered_is_done_and_no_work_of_this_one() -> None:
    assert lines((5, 900), (15, 950), (25, 1000)) == ["score: 1000 of 1000 rows, 5.0 rows/s"]
    assert lines((5, 1000)) == ["score: 1000 of 1000 rows"]


def test_a_run_that_fails_says_how_far_it_came_and_one_that_had_not_begun_says_nothing() -> None:
    stream = io.StringIO()
    with suppress(KeyboardInterrupt), shown_progress(stream, clock=iter([0.0, 4.0]).__next__) as on_progress:
        on_progress(0, 1000)
        on_progress(20, 1000)
        raise KeyboardInterrupt
    assert stream.getvalue() == "score: 20 of 1000 rows, 5.0 rows/s\n"
    assert lines() == []
