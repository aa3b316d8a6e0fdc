"""Promotions that another flow asks for: decided on the spot, or by people, in runs of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from flows.parameters import PromoteParameters
from flows.promote import promote
from promptstore.errors import NotFoundError

DEPLOYMENT = "promote/on-demand"


@dataclass(frozen=True, slots=True)
class Promotions:
    """promoted: versions that are in use now. refused: why others are not. asked: those that people decide."""

    promoted: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def require_people_can_be_asked() -> None:
    """Find out before anything is begun.

    Raises:
        NotFoundError: there is no deployment to ask them in.
    """
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise NotFoundError(
                f"approval=person needs the deployment {DEPLOYMENT}; make it with `promptstore deploy`"
            ) from None


def promote_each(wanted: Sequence[PromoteParameters]) -> Promotions:
    """Those that nobody is asked about, one after the other. For each of the others a run begins that waits for its
    answer as long as it takes, on no worker; nobody is asked twice at a time about the same.
    """
    promoted, refused, asked = [], [], []
    for each in wanted:
        if _is_waiting(each):
            asked.append(each.ref)
        elif each.approval == "person":
            _ask(each)
            asked.append(each.ref)
        else:
            state: Any = promote(each, return_state=True)
            if state.is_completed():
                promoted.append(each.ref)
            else:
                refused.append(str(state.result(raise_on_failure=False)))
    return Promotions(tuple(promoted), tuple(refused), tuple(asked))


def _ask(parameters: PromoteParameters) -> None:
    """Not as a subflow: Prefect lets none of those go while it waits."""
    asked = {"parameters": parameters.model_dump(mode="json")}
    run = cast(
        "FlowRun",  # a coroutine only where it is called from one
        run_deployment(DEPLOYMENT, parameters=asked, flow_run_name=_name(parameters), timeout=0, as_subflow=False),
    )
    get_run_logger().info("people are asked about %s in run %s", parameters.ref, run.id)


def _is_waiting(parameters: PromoteParameters) -> bool:
    """Whether a run for the same waits, for a worker or for an answer; what runs may be a dead worker's."""
    waiting = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PAUSED])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[promote.name])),
            flow_run_filter=FlowRunFilter(
                name=FlowRunFilterName(any_=[_name(parameters)]), state=FlowRunFilterState(type=waiting)
            ),
            sort=FlowRunSort.START_TIME_DESC,  # the server refuses a request that names none
            limit=1,
        )
    return bool(runs)


def _name(parameters: PromoteParameters) -> str:
    """As a promotion names its run."""
    return str(promote.flow_run_name).format(parameters=parameters)
