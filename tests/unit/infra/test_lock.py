"""The pinned versions, which anybody's package index must be able to give."""

import re
from pathlib import Path

LOCK = Path(__file__).parents[3] / "requirements.lock"
PIN = re.compile(r"[A-Za-z0-9][\w.-]*==[0-9][\w.!]*")


def test_the_lock_names_versions_and_no_place_to_get_them_from() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(pins) > 50
    assert [line for line in pins if PIN.fullmatch(line) is None] == []
