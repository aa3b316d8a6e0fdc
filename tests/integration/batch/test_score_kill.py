"""kill -9 of `promptstore score`, the alias moved, the same command again: one file, one version."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from promptstore.testing.job_place import JobPlace, write_tiny_model
from promptstore.testing.served import SENTIMENT, publish_random
from promptstore.testing.tiny_models import tiny_llama

pytestmark = pytest.mark.slow
ROWS, AT_ONCE = 4000, 50


@pytest.fixture
def place(tmp_path: Path) -> JobPlace:
    """A store with one version in production, its model on disk, and many rows."""
    place = JobPlace(tmp_path)
    write_tiny_model(tmp_path / "model")
    publish_random(place.store(), tiny_llama(), SENTIMENT, seed=1)
    with (tmp_path / "rows.jsonl").open("w") as rows:
        for at in range(ROWS):
            rows.write(json.dumps({"text": f"{'film ' * (at % 5)}{at}", "label": "pos" if at % 2 else "neg"}) + "\n")
    return place


def start(place: JobPlace, ref: str, output: str) -> "subprocess.Popen[str]":
    arguments = [ref, str(place.folder / "rows.jsonl"), "-o", str(place.folder / output), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "promptstore", "score", *arguments, "--rows-at-once", str(AT_ONCE)],
        env={**os.environ, **place.environment(place.folder / "model"), "PROMPTSTORE_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> dict[str, object]:
    said, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    summary = dict(json.loads(said))
    # Rows of an earlier run are no work of this one; where that had done all, there is no speed to tell.
    speed = "" if summary["found"] == ROWS else r", \d+\.\d rows/s"
    assert re.fullmatch(rf"(score: \d+ of {ROWS} rows.*\n)*score: {ROWS} of {ROWS} rows{speed}\n", error), error
    return summary


def test_a_killed_command_repeated_writes_the_file_of_one_that_was_not(place: JobPlace) -> None:
    partial = place.folder / "out.jsonl.partial"
    process = start(place, "sentiment", "out.jsonl")
    deadline = time.monotonic() + 200
    while not (partial.exists() and partial.read_bytes().count(b"\n") >= AT_ONCE):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    written = partial.read_bytes().count(b"\n")
    print(f"killed with {written} of {ROWS} rows on disk")
    assert AT_ONCE <= written < ROWS
    publish_random(place.store(), tiny_llama(), SENTIMENT, seed=2)

    summary = ended(start(place, "sentiment", "out.jsonl"))
    assert summary["found"] == written // AT_ONCE * AT_ONCE
    assert (summary["rows"], summary["version"]) == (ROWS, "sentiment:1")
    assert ended(start(place, "sentiment:1", "whole.jsonl"))["found"] == 0
    assert (place.folder / "out.jsonl").read_bytes() == (place.folder / "whole.jsonl").read_bytes()
    assert not partial.exists()
