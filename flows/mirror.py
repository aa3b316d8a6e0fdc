"""The flow that shows the log in MLflow's registry, and turns wishes found there into promotions people approve."""

from dataclasses import dataclass

from prefect import flow, get_run_logger, task

from flows.parameters import MirrorParameters
from flows.promote_together import promote_together
from flows.retrying import is_passing
from promptstore.errors import InvalidInputError
from promptstore.settings import load_settings
from promptstore.tracking.registry import MirrorReport, open_mirror
from promptstore.wiring import open_prompt_store


@dataclass(frozen=True, slots=True)
class Mirrored:
    """registered: versions new in MLflow. moved: aliases set to what the log says. promoted, refused: what became of
    wishes that people expressed by moving an alias in MLflow.
    """

    registered: tuple[str, ...]
    moved: tuple[str, ...]
    promoted: tuple[str, ...]
    refused: tuple[str, ...]


@flow(name="mirror")
def mirror(parameters: MirrorParameters) -> Mirrored:
    """Bring MLflow's registry to the state of the log."""
    report = sync(parameters)
    wishes = report.requests if parameters.take_requests else ()
    promoted, refused = promote_together([parameters.promotion(str(wish.ref), wish.alias) for wish in wishes])
    return Mirrored(tuple(report.registered), tuple(report.moved), promoted, refused)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def sync(parameters: MirrorParameters) -> MirrorReport:
    """One pass over all tasks, or over those that are named."""
    settings = load_settings()
    if not settings.mlflow_uri:
        raise InvalidInputError("PROMPTSTORE_MLFLOW_URI is not set, so there is no registry to show the log in")
    store = open_prompt_store(settings, create=False)
    report = open_mirror(settings.mlflow_uri, base_model=settings.model).sync(store, parameters.tasks)
    for wish in report.requests:
        get_run_logger().warning("%s was asked for as %s on MLflow's page; it was set back", wish.ref, wish.alias)
    return report
