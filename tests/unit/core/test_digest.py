"""Canonical bytes, sealed objects, instants."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstore.core.digest import canonical_json, parse_json
from promptstore.core.instant import format_instant, parse_instant
from promptstore.core.sealed import seal, unseal
from promptstore.errors import CorruptError, InvalidInputError
from promptstore.testing.strategies import json_objects, json_values, moments


@given(json_values)
def test_canonical_json_reads_back_as_the_same_value(value: Any) -> None:
    assert parse_json(canonical_json(value), "value") == value


@given(json_objects)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800", {1, 2}, b"x", {(1, 2): 3}])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        canonical_json({"value": value})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1}}', b"[" * 100_000])
def test_what_is_not_json_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError, match="thing is not valid JSON"):
        parse_json(data, "thing")


@given(json_objects.filter(lambda value: "sha256" not in value))
def test_a_sealed_object_opens_to_what_was_sealed(value: dict[str, Any]) -> None:
    assert unseal(seal(value), "thing") == value


@given(json_objects, st.data())
def test_no_flipped_bit_gets_past_a_seal(value: dict[str, Any], data: st.DataObject) -> None:
    sealed = bytearray(seal(value))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptError):
        unseal(bytes(sealed), "thing")


@pytest.mark.parametrize("data", [b"[]", b'{"a":1}', b'{"a":NaN,"sha256":""}', b'{"a":"\\ud800","sha256":""}'])
def test_an_object_without_its_seal_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        unseal(data, "thing")


def test_a_sealed_object_in_another_spelling_is_corrupt() -> None:
    pretty = json.dumps(json.loads(seal({"a": 1})), indent=1).encode()
    with pytest.raises(CorruptError):
        unseal(pretty, "thing")


@given(moments, moments)
def test_instants_sort_as_time_does(one: datetime, other: datetime) -> None:
    assert (format_instant(one) < format_instant(other)) == (one.astimezone(UTC) < other.astimezone(UTC))


@given(moments)
def test_an_instant_reads_back_as_the_same_moment(moment: datetime) -> None:
    assert parse_instant(format_instant(moment), "at") == moment.astimezone(UTC)


def test_an_instant_needs_a_time_zone() -> None:
    with pytest.raises(InvalidInputError, match="no time zone"):
        format_instant(datetime(2026, 1, 1))  # noqa: DTZ001


def test_an_instant_outside_of_utc_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="out of range"):
        format_instant(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zzz",
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "2026-13-01T00:00:00.000000Z",
        "2026-01-01T00:00:00.000000+01:00",
    ],
)
def test_other_forms_of_time_are_corrupt(text: str) -> None:
    with pytest.raises(CorruptError, match="at is"):
        parse_instant(text, "at")


def test_instants_of_other_zones_are_written_in_utc() -> None:
    moment = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert format_instant(moment) == "2025-12-31T23:00:00.000000Z"
