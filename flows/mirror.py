"""The flow that shows the log in MLflow's registry, and turns wishes found there into promotions people approve."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect import flow, get_run_logger, task

from flows.parameters import MirrorParameters
from flows.promotions import Promotions, promote_each, require_people_can_be_asked
from flows.retrying import is_passing
from promptstore.errors import InvalidInputError
from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.tracking.registry import MirrorReport


@dataclass(frozen=True, slots=True)
class Mirrored:
    """registered: versions new in MLflow. moved: aliases set to what the log says. wishes: what became of those that
    people expressed by moving an alias in MLflow.
    """

    registered: tuple[str, ...]
    moved: tuple[str, ...]
    wishes: Promotions


@flow(name="mirror")
def mirror(parameters: MirrorParameters) -> Mirrored:
    """Bring MLflow's registry to the state of the log."""
    if parameters.take_requests and parameters.approval == "person":
        require_people_can_be_asked()
    report = sync(parameters)
    wishes = report.requests if parameters.take_requests else ()
    became = promote_each([parameters.promotion(str(wish.ref), wish.alias) for wish in wishes])
    return Mirrored(tuple(report.registered), tuple(report.moved), became)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def sync(parameters: MirrorParameters) -> "MirrorReport":
    """One pass over all tasks, or over those that are named."""
    from promptstore.tracking.registry import open_mirror

    settings = load_settings()
    if not settings.mlflow_uri:
        raise InvalidInputError("PROMPTSTORE_MLFLOW_URI is not set, so there is no registry to show the log in")
    store = open_prompt_store(settings, create=False)
    report = open_mirror(settings.mlflow_uri, base_model=settings.model).sync(store, parameters.tasks)
    for wish in report.requests:
        get_run_logger().warning("%s was asked for as %s on MLflow's page; it was set back", wish.ref, wish.alias)
    return report
