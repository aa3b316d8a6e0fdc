"""What jobs of this machine could not tell MLflow, kept until it can be told. Imports neither torch nor MLflow."""

from promptstore.settings import Settings
from promptstore.tracking import TrackingReport, replay_spool

SPOOLS = "tracking"


def resend(settings: Settings) -> list[TrackingReport]:
    """Tell MLflow what earlier jobs of this machine could not; what it still does not take stays kept."""
    if not settings.mlflow_uri:
        return []
    return replay_spool(settings.mlflow_uri, spool_folder=settings.state_dir / SPOOLS)
