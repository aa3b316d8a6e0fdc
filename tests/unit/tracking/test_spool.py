"""What could not be sent is on disk, whole and in order."""

from pathlib import Path

import pytest

from promptstore.errors import CorruptError
from promptstore.tracking.events import TagsSet
from promptstore.tracking.spool import Spool, spools


def said(number: int) -> TagsSet:
    return TagsSet("run", {"number": str(number)})


def test_events_come_back_in_order_from_another_spool_object(tmp_path: Path) -> None:
    Spool(tmp_path / "job.jsonl").append([said(1), said(2)])
    Spool(tmp_path / "job.jsonl").append([said(3)])
    assert [each.event for each in Spool(tmp_path / "job.jsonl").read()] == [said(1), said(2), said(3)]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "job.jsonl")
    spool.append([said(1), said(2)])
    spool.path.write_bytes(spool.path.read_bytes()[:-5])
    assert [each.event for each in spool.read()] == [said(1)]


def test_dropping_what_was_sent_keeps_what_came_meanwhile(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "job.jsonl")
    spool.append([said(1), said(2)])
    sent = spool.read()
    spool.append([said(3)])
    spool.drop(sent)
    assert [each.event for each in spool.read()] == [said(3)]


def test_dropping_twice_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "job.jsonl")
    spool.append([said(1), said(2)])
    sent = spool.read()[:1]
    spool.drop(sent)
    spool.drop(sent)
    assert [each.event for each in spool.read()] == [said(2)]


def test_an_emptied_spool_leaves_no_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "job.jsonl")
    spool.append([said(1)])
    assert [each.path for each in spools(tmp_path)] == [spool.path]
    spool.drop(spool.read())
    assert spool.is_empty
    assert spools(tmp_path) == []


def test_a_broken_line_is_named_and_can_be_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "job.jsonl")
    spool.append([said(1)])
    with spool.path.open("a") as file:
        file.write("not json\n")
    with pytest.raises(CorruptError, match="line 2 is not JSON"):
        spool.read()
    aside = spool.set_aside()
    assert spool.is_empty
    assert aside.read_text().endswith("not json\n")
