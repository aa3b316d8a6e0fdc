"""Events survive the trip through a spool, and are gathered before they are sent."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstore.errors import CorruptError
from promptstore.tracking.events import (
    MAX_POINTS,
    ArtifactLogged,
    DatasetLogged,
    Event,
    MetricsLogged,
    ParamsLogged,
    Point,
    RunEnded,
    RunStarted,
    TagsSet,
    event_from_json,
    event_to_json,
    merged,
)
from promptstore.tracking.port import DatasetRecord, RunHeader

texts = st.text(max_size=12)
mappings = st.dictionaries(texts, texts, max_size=3)
times = st.integers(0, 2**53)
points = st.builds(Point, texts, st.floats(allow_nan=False), st.integers(0, 2**40), times)
headers = st.builds(RunHeader, texts, texts, texts, st.none() | texts, mappings)
datasets = st.builds(DatasetRecord, texts, texts, texts, st.integers(0, 10**9), st.lists(texts, max_size=3).map(tuple))
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RunStarted, headers, times),
    st.builds(ParamsLogged, texts, mappings),
    st.builds(MetricsLogged, texts, st.lists(points, max_size=4).map(tuple)),
    st.builds(TagsSet, texts, mappings),
    st.builds(DatasetLogged, texts, datasets, st.sampled_from(["train", "validation"])),
    st.builds(ArtifactLogged, texts, texts, st.binary(max_size=30)),
    st.builds(RunEnded, texts, st.sampled_from(["FINISHED", "FAILED", "KILLED"]), times),
)


@given(events)
def test_an_event_survives_json(event: Event) -> None:
    assert event_from_json(json.loads(json.dumps(event_to_json(event), allow_nan=False))) == event


def test_nan_survives_json() -> None:
    line = json.dumps(event_to_json(MetricsLogged("a", (Point("loss", math.nan, 1, 2),))), allow_nan=False)
    (point,) = event_from_json(json.loads(line)).points  # type: ignore[union-attr]
    assert math.isnan(point.value)


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(CorruptError, match="'surprise' is unknown"):
        event_from_json({"event": "surprise"})


def test_measurements_of_a_run_are_gathered_across_other_events_and_runs() -> None:
    loss = [MetricsLogged(run, (Point("loss", 1.0, step, 0),)) for step in range(3) for run in ("a", "b")]
    result = merged([loss[0], TagsSet("a", {"x": "y"}), *loss[1:]])
    assert [(type(event).__name__, event.run) for event in result] == [
        ("MetricsLogged", "a"),
        ("TagsSet", "a"),
        ("MetricsLogged", "b"),
    ]
    assert [point.step for point in result[0].points] == [0, 1, 2]  # type: ignore[union-attr]


def test_gathered_measurements_stay_within_what_the_server_takes() -> None:
    many = MetricsLogged("a", tuple(Point("loss", 1.0, step, 0) for step in range(2 * MAX_POINTS + 1)))
    sizes = [len(event.points) for event in merged([many]) if isinstance(event, MetricsLogged)]
    assert sizes == [MAX_POINTS, MAX_POINTS, 1]
