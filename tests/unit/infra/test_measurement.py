"""What a benchmark writes and prints."""

import json
from pathlib import Path

import pytest

from infra.bench.measurement import keep, measured, report


def test_a_row_is_held_against_its_target() -> None:
    fast = measured("a / b", 3.5, "x", target=">= 3", command="make bench")
    assert (fast.holds, measured("a / b", 2.5, "x", target=">= 3", command="make bench").holds) == (True, False)
    assert measured("seconds", 2.5, "s", command="make bench").holds is None


def test_a_part_that_is_measured_again_replaces_its_own_rows_alone(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.json"
    keep([measured("one", 1, "s", command="make bench"), measured("two", 2, "s", command="make bench")], file)
    kept = keep([measured("two", 3, "s", target="< 4", command="make bench")], file)
    assert [(row.name, row.value) for row in kept] == [("one", 1), ("two", 3)]
    rows = json.loads(file.read_bytes())
    assert [set(row) for row in rows] == [{"name", "value", "unit", "target", "holds", "command"}] * 2
    assert rows[1] == {"name": "two", "value": 3, "unit": "s", "target": "< 4", "holds": True, "command": "make bench"}


def test_the_table_says_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [measured("one", 1.5, "s", target="< 1", command="make bench")]
    report(rows, tmp_path / "bench.json")
    printed = capsys.readouterr().out
    for said in ("one", "1.5", "s", "< 1", "NO", "make bench"):
        assert said in printed
