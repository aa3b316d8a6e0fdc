"""The flow that promotes: gate, approval, move, confirmation, and back again if that fails."""

from typing import TYPE_CHECKING, cast

from prefect import flow, get_run_logger, pause_flow_run, suspend_flow_run, task
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import Completed

from flows.parameters import PromoteParameters
from flows.report import gate_page, report_gate
from flows.retrying import is_passing
from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.state import PromptVersion
from promptstore.errors import RefusedError
from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.tuning.job_confirm import Confirmation
    from promptstore.tuning.job_gate import Answer, GateOutcome


class Approval(RunInput):
    """The form on Prefect's page."""

    approve: bool
    approver: str
    reason: str = ""

    def answer(self) -> "Answer":
        from promptstore.tuning.job_gate import Answer

        return Answer(self.approve, self.approver, self.reason)


@flow(name="promote", flow_run_name="promote {parameters.ref} to {parameters.alias}")
def promote(parameters: PromoteParameters) -> PromptVersion | None:
    """Judge a version against what the alias points at, and move the alias if it is no worse and nobody objects."""
    if (reason := look_for_news(parameters)) is not None:
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
    """Why nothing is left to do, if so: what asked for this came too late."""
    from promptstore.tuning.job_gate import why_no_news

    store = open_prompt_store(load_settings(), create=False)
    return why_no_news(store, parameters.ref, parameters.alias, only_newest=parameters.only_news)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def gate(parameters: PromoteParameters) -> "GateOutcome":
    """The verdict, written into the log; found there if an earlier try of this run came so far."""
    from promptstore.tuning.job_open_gate import run_gate_job

    settings = load_settings(model=parameters.model)
    return run_gate_job(
        parameters.ref,
        settings=settings,
        store=open_prompt_store(settings, create=False),
        alias=parameters.alias,
        task_file=parameters.task_file,
        policy=parameters.gate.policy(),
    )


def ask_a_person(parameters: PromoteParameters, outcome: "GateOutcome") -> "Answer":
    """Wait until somebody answers the form on Prefect's page, which shows the figures.

    A deployment's run ends meanwhile, and frees its worker and GPU; answered, it begins again and finds its verdict in
    the log. An answer counts for the figures that were shown: against another version people are asked anew.
    """
    form = Approval.with_initial_data(description=gate_page(outcome), approve=False, approver="")
    timeout_s = parameters.approval_timeout_s
    if deployment.id is not None:
        shown = sha256_hex(canonical_json([str(outcome.ref), outcome.against, outcome.verdict.to_json()]))
        return suspend_flow_run(wait_for_input=form, timeout=timeout_s, key=shown).answer()
    try:
        approval: Approval = pause_flow_run(
            wait_for_input=form, timeout=timeout_s, poll_interval=parameters.approval_poll_s
        )
    except FlowPauseTimeout as error:
        raise RefusedError(
            f"nobody answered for {outcome.ref} within {timeout_s} s; the alias stays where it is"
        ) from error
    return approval.answer()


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def move(parameters: PromoteParameters, outcome: "GateOutcome", answer: "Answer | None") -> PromptVersion:
    """The alias moves, and the answer is kept, in one commit."""
    from promptstore.tuning.job_gate import promote_gated

    store = open_prompt_store(load_settings(), create=False)
    return promote_gated(store, outcome, reason=parameters.reason or str(outcome), answer=answer)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def confirm(outcome: "GateOutcome") -> "Confirmation":
    """Look at the store as a new server does: what the gate left in the cache of this machine proves nothing."""
    from promptstore.tuning.job_confirm import confirm_promotion

    settings = load_settings(cache_bytes=0)
    store = open_prompt_store(settings, create=False)
    found = confirm_promotion(
        store,
        outcome,
        servers=settings.confirm_servers,
        timeout_s=settings.confirm_timeout_s,
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
    )
    get_run_logger().info("%s: %s", found.state, found.explanation)
    return found


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def undo(outcome: "GateOutcome", confirmation: "Confirmation") -> None:
    """Back to what was there before."""
    from promptstore.tuning.job_gate import undo_promotion

    store = open_prompt_store(load_settings(), create=False)
    undo_promotion(store, outcome, reason=f"could not be confirmed: {confirmation.explanation}")
