"""The flow that promotes: gate, approval, move, confirmation, and back again if that fails."""

from prefect import flow, pause_flow_run, task
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput

from flows.parameters import PromoteParameters
from flows.report import gate_page, report_gate
from flows.retrying import is_passing
from promptstore.core.state import PromptVersion
from promptstore.errors import RefusedError
from promptstore.settings import load_settings
from promptstore.tuning.job_gate import Confirmation, GateOutcome, confirm_promotion, promote_gated, undo_promotion
from promptstore.tuning.job_open import run_gate_job
from promptstore.wiring import open_prompt_store


class Approval(RunInput):
    """What a person fills in on Prefect's page."""

    approve: bool
    approver: str
    reason: str = ""


@flow(name="promote", flow_run_name="promote {parameters.ref} to {parameters.alias}")
def promote(parameters: PromoteParameters) -> PromptVersion:
    """Judge a version against what the alias points at, and move the alias if it is no worse and nobody objects."""
    outcome = gate(parameters)
    report_gate(outcome)
    if not outcome.has_passed:
        raise RefusedError(str(outcome))
    approval = ask_a_person(parameters, outcome) if parameters.approval == "person" else None
    version = move(parameters, outcome, approval)
    confirmation = confirm(outcome)
    if confirmation.state == "broken":
        undo(outcome, confirmation)
        raise RefusedError(f"{version} was taken back: {confirmation.explanation}")
    return version


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def gate(parameters: PromoteParameters) -> GateOutcome:
    """The verdict, written into the log."""
    settings = load_settings(model=parameters.model)
    return run_gate_job(
        parameters.ref,
        settings=settings,
        store=open_prompt_store(settings, create=False),
        alias=parameters.alias,
        task_file=parameters.task_file,
        policy=parameters.policy(),
    )


def ask_a_person(parameters: PromoteParameters, outcome: GateOutcome) -> Approval:
    """Pause until somebody answers the form on Prefect's page, which shows the figures."""
    form = Approval.with_initial_data(description=gate_page(outcome), approve=False, approver="")
    try:
        answer = pause_flow_run(
            wait_for_input=form, timeout=parameters.approval_timeout_s, poll_interval=parameters.approval_poll_s
        )
    except FlowPauseTimeout as error:
        raise RefusedError(
            f"nobody answered for {outcome.ref} within {parameters.approval_timeout_s} s; the alias stays where it is"
        ) from error
    if not answer.approve:
        raise RefusedError(f"{answer.approver} declined {outcome.ref} for {outcome.alias}: {answer.reason}")
    return answer


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def move(parameters: PromoteParameters, outcome: GateOutcome, approval: Approval | None) -> PromptVersion:
    """The alias moves, and the approval is kept, in one commit."""
    store = open_prompt_store(load_settings(), create=False)
    said = None if approval is None else {"approver": approval.approver, "reason": approval.reason}
    return promote_gated(store, outcome, reason=parameters.reason or str(outcome), approval=said)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def confirm(outcome: GateOutcome) -> Confirmation:
    """Look at the store as a server does."""
    return confirm_promotion(open_prompt_store(load_settings(), create=False), outcome)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def undo(outcome: GateOutcome, confirmation: Confirmation) -> None:
    """Back to what was there before."""
    store = open_prompt_store(load_settings(), create=False)
    undo_promotion(store, outcome, reason=f"could not be confirmed: {confirmation.explanation}")
