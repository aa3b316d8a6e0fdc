"""Many promotions at the same time, because each may wait a day for a person."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from threading import Thread
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.parameters import PromoteParameters
from flows.promote import promote
from promptstore.core.state import PromptVersion
from promptstore.runtime.settling import settle

Promoted = State[PromptVersion | None]
UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
PAGE = 200  # no more are read at once


def promote_together(wanted: Sequence[PromoteParameters]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What was promoted, and why the rest was not; one that waits for a person holds up nobody else.

    A run that is cancelled or interrupted ends at once: whoever is still asked is told that nobody waits any more.
    """
    begun = [_begin(each) for each in wanted]
    try:
        states = [each.result() for each in begun]
    except BaseException:
        with suppress(HTTPError):  # the end of the run matters more than a server that has gone
            _call_off()
        raise
    promoted = tuple(each.ref for each, state in zip(wanted, states, strict=True) if state.is_completed())
    return promoted, tuple(str(each.result(raise_on_failure=False)) for each in states if not each.is_completed())


def _begin(parameters: PromoteParameters) -> Future[Promoted]:
    """In a thread that keeps no process alive, with a copy of the context: Prefect must know whose run it is."""
    ended: Future[Promoted] = Future()
    work = partial(copy_context().run, promote, parameters, return_state=True)
    Thread(target=settle, args=(work, ended), name=f"promote {parameters.ref}", daemon=True).start()
    return ended


def _call_off() -> None:
    waiting = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(flow_run.get_id())]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    with get_client(sync_client=True) as client:
        while runs := client.read_flow_runs(flow_run_filter=waiting, sort=FlowRunSort.START_TIME_ASC, limit=PAGE):
            for run in runs:
                client.set_flow_run_state(
                    run.id, Cancelled(message="the run that asked for it was stopped"), force=True
                )
