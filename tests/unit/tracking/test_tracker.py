"""What a run log makes of a job's words."""

from pathlib import Path

import pytest

from promptstore.errors import InvalidInputError
from promptstore.testing.tracking_sink import MemorySink
from promptstore.tracking import NullTracker, Patience, RunHeader, open_tracker
from promptstore.tracking.delivery import Delivery
from promptstore.tracking.mlflow_address import default_artifact_root, without_password
from promptstore.tracking.spool import Spool
from promptstore.tracking.tracker import DeliveredTracker


def test_without_an_address_nobody_listens(tmp_path: Path) -> None:
    tracker = open_tracker("", spool_folder=tmp_path, job="job")
    assert isinstance(tracker, NullTracker)
    run = tracker.start(RunHeader("k", "e", "n"))
    run.log_metrics({"loss": 1.0}, step=1)
    assert run.run_id(0) is None
    assert str(tracker.close()) == "tracking: 0 records sent"


def test_settings_are_flattened_and_names_made_legal(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = DeliveredTracker(Delivery(sink, Spool(tmp_path / "j.jsonl"), patience=Patience(interval_s=0.001)))
    run = tracker.start(RunHeader("k", "e", "n"))
    run.log_params({"fit": {"steps": 80, "labels": ["a", "b"]}})
    run.log_metrics({"f1/so, so": 0.5, "/a//b": 1}, step=3)
    tracker.close()
    assert sink.runs["k"].params == {"fit.steps": "80", "fit.labels": "['a', 'b']"}
    assert [(point.name, point.value, point.step) for point in sink.runs["k"].points] == [
        ("f1/so_ so", 0.5, 3),
        ("a/b", 1.0, 3),
    ]


def test_a_sqlite_database_keeps_its_artifacts_beside_it(tmp_path: Path) -> None:
    assert default_artifact_root(f"sqlite:///{tmp_path}/ml.db") == (tmp_path / "artifacts").as_uri()
    assert default_artifact_root("http://127.0.0.1:5000") is None


def test_a_database_on_a_server_needs_to_be_told_where_artifacts_go(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"postgresql://me:\*\*\*@db/ml is a database"):
        open_tracker("postgresql://me:secret@db/ml", spool_folder=tmp_path, job="job")


def test_a_job_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'\.\./x'"):
        open_tracker("http://127.0.0.1:1", spool_folder=tmp_path, job="../x")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "sqlite:////tmp/x.db"])
def test_an_address_without_a_password_is_shown_as_it_is(uri: str) -> None:
    assert without_password(uri) == uri
