"""The flow that promotes: gate, approval, move, confirmation, and back again if that fails."""

from threading import Lock
from typing import cast

from prefect import flow, pause_flow_run, task
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.states import Completed

from flows.parameters import PromoteParameters
from flows.report import gate_page, report_gate
from flows.retrying import is_passing
from promptstore.core.state import PromptVersion
from promptstore.errors import RefusedError
from promptstore.settings import load_settings
from promptstore.tuning.job_gate import (
    Answer,
    Confirmation,
    GateOutcome,
    confirm_promotion,
    promote_gated,
    undo_promotion,
    why_no_news,
)
from promptstore.tuning.job_open import run_gate_job
from promptstore.wiring import open_prompt_store

# Promotions of one retraining wait for people side by side, but open the model one after the other.
ONE_MODEL = Lock()


class Approval(RunInput):
    """The form on Prefect's page."""

    approve: bool
    approver: str
    reason: str = ""

    def answer(self) -> Answer:
        return Answer(self.approve, self.approver, self.reason)


@flow(name="promote", flow_run_name="promote {parameters.ref} to {parameters.alias}")
def promote(parameters: PromoteParameters) -> PromptVersion | None:
    """Judge a version against what the alias points at, and move the alias if it is no worse and nobody objects."""
    if parameters.only_news and (reason := look_for_news(parameters)) is not None:
        # Prefect takes a state that a flow returns as the state of its run; called directly, the flow returns `None`.
        return cast("None", Completed(name="Skipped", message=f"skipped: {reason}"))
    outcome = gate(parameters)
    report_gate(outcome)
    if not outcome.has_passed:
        raise RefusedError(str(outcome))
    answer = ask_a_person(parameters, outcome) if parameters.approval == "person" else None
    version = move(parameters, outcome, answer)
    confirmation = confirm(outcome)
    if confirmation.state == "broken":
        undo(outcome, confirmation)
        raise RefusedError(f"{version} was taken back: {confirmation.explanation}")
    return version


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def look_for_news(parameters: PromoteParameters) -> str | None:
    """Why an event that asked for this came too late, if it did."""
    return why_no_news(open_prompt_store(load_settings(), create=False), parameters.ref, parameters.alias)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def gate(parameters: PromoteParameters) -> GateOutcome:
    """The verdict, written into the log."""
    settings = load_settings(model=parameters.model)
    with ONE_MODEL:
        return run_gate_job(
            parameters.ref,
            settings=settings,
            store=open_prompt_store(settings, create=False),
            alias=parameters.alias,
            task_file=parameters.task_file,
            policy=parameters.policy(),
        )


def ask_a_person(parameters: PromoteParameters, outcome: GateOutcome) -> Answer:
    """Pause until somebody answers the form on Prefect's page, which shows the figures."""
    form = Approval.with_initial_data(description=gate_page(outcome), approve=False, approver="")
    try:
        approval: Approval = pause_flow_run(
            wait_for_input=form, timeout=parameters.approval_timeout_s, poll_interval=parameters.approval_poll_s
        )
    except FlowPauseTimeout as error:
        raise RefusedError(
            f"nobody answered for {outcome.ref} within {parameters.approval_timeout_s} s; the alias stays where it is"
        ) from error
    return approval.answer()


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def move(parameters: PromoteParameters, outcome: GateOutcome, answer: Answer | None) -> PromptVersion:
    """The alias moves, and the answer is kept, in one commit."""
    store = open_prompt_store(load_settings(), create=False)
    return promote_gated(store, outcome, reason=parameters.reason or str(outcome), answer=answer)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def confirm(outcome: GateOutcome) -> Confirmation:
    """Look at the store as a new server does: what the gate left in the cache of this machine proves nothing."""
    return confirm_promotion(open_prompt_store(load_settings(cache_bytes=0), create=False), outcome)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def undo(outcome: GateOutcome, confirmation: Confirmation) -> None:
    """Back to what was there before."""
    store = open_prompt_store(load_settings(), create=False)
    undo_promotion(store, outcome, reason=f"could not be confirmed: {confirmation.explanation}")
