"""The bars of the real `datasets` library, while we load through it: on a terminal, and nowhere else."""

import os
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from promptstore.testing.terminal import read_to_end

LOAD = """
import sys
import datasets
from promptstore.tuning.data import load_rows
print(len(load_rows(sys.argv[1])), datasets.are_progress_bars_disabled())
"""


def terminal() -> tuple[int, int]:
    """Both ends of a terminal that is wide enough for a bar."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    return reader, writer


def loaded(folder: Path, home: Path, pair: Callable[[], tuple[int, int]], **environment: str) -> tuple[str, str]:
    """Loads in a process of its own; what it prints, and what comes out of its standard error, one end of `pair`."""
    reader, writer = pair()
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, f"hf:{folder}/train"],
        env={**os.environ, **offline, **environment},
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        timeout=300,
        check=False,
    )
    os.close(writer)
    return done.stdout.strip(), read_to_end(reader)


@pytest.mark.parametrize(("pair", "is_shown"), [(terminal, True), (os.pipe, False)])
def test_bars_are_drawn_on_a_terminal_and_a_pipe_gets_none(
    tmp_path: Path, pair: Callable[[], tuple[int, int]], is_shown: bool
) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.csv").write_text("text,label\ngood,1\nbad,0\n")
    printed, said = loaded(tmp_path / "reviews", tmp_path / "home", pair)
    assert printed == "2 False", said
    assert ("Generating train split" in said) == is_shown, said
    assert ("examples/s" in said) == is_shown


def test_bars_that_somebody_switched_off_stay_off(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "train.csv").write_text("text,label\ngood,1\n")
    printed, said = loaded(tmp_path / "reviews", tmp_path / "home", terminal, HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    assert (printed, "Generating" in said) == ("1 True", False)
