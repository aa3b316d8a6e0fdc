"""A tracker that nobody listens to: for jobs without MLflow."""

from collections.abc import Mapping

from promptstore.tracking.port import DatasetContext, DatasetRecord, RunHeader, RunStatus, TrackingReport


class NullRunLog:
    """Takes everything, keeps nothing."""

    def log_params(self, values: Mapping[str, object]) -> None: ...

    def log_metrics(self, values: Mapping[str, float], *, step: int) -> None: ...

    def set_tags(self, values: Mapping[str, str]) -> None: ...

    def log_dataset(self, dataset: DatasetRecord, context: DatasetContext) -> None: ...

    def log_artifact(self, path: str, data: bytes) -> None: ...

    def end(self, status: RunStatus = "FINISHED") -> None: ...

    def run_id(self, timeout_s: float) -> str | None:  # noqa: ARG002 - the port's signature
        return None


class NullTracker:
    """Tracking switched off."""

    def start(self, header: RunHeader) -> NullRunLog:  # noqa: ARG002 - the port's signature
        return NullRunLog()

    def close(self) -> TrackingReport:
        return TrackingReport()
