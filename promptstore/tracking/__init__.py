"""Telling MLflow what a job does, without ever holding the job up."""

from promptstore.tracking.delivery import Patience
from promptstore.tracking.null import NullTracker
from promptstore.tracking.port import DatasetRecord, RunHeader, RunLog, Tracker, TrackingReport
from promptstore.tracking.tracker import open_tracker, replay_spool

__all__ = [
    "DatasetRecord",
    "NullTracker",
    "Patience",
    "RunHeader",
    "RunLog",
    "Tracker",
    "TrackingReport",
    "open_tracker",
    "replay_spool",
]
