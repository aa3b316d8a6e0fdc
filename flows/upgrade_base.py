"""The flow that brings every prompt from one base model to the next."""

from typing import TYPE_CHECKING

from prefect import flow, task

from flows.parameters import UpgradeBaseParameters
from flows.report import report_upgrade
from flows.retrying import is_passing
from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.tuning.upgrade_release import Upgrade, UpgradeResult


@flow(name="upgrade_base", flow_run_name="upgrade from {parameters.old_model}")
def upgrade_base(parameters: UpgradeBaseParameters) -> "UpgradeResult":
    """Tune again what the aliases name, judge it, and move all aliases in one commit, or none."""
    upgrade = tune_and_judge(parameters)
    result = release(parameters, upgrade)
    report_upgrade(result)
    result.require_released()
    return result


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def tune_and_judge(parameters: UpgradeBaseParameters) -> "Upgrade":
    """All of the work that needs a model. What an earlier try published is found again."""
    from promptstore.tuning.job_upgrade import run_upgrade_job

    settings = load_settings(model=parameters.model)
    store = open_prompt_store(settings, create=False)
    return run_upgrade_job(parameters.request(), settings=settings, store=store)


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def release(parameters: UpgradeBaseParameters, upgrade: "Upgrade") -> "UpgradeResult":
    """The one commit, if everything passed."""
    from promptstore.tuning.upgrade_release import release_upgrade

    store = open_prompt_store(load_settings(), create=False)
    return release_upgrade(store, upgrade, allow_partial=parameters.allow_partial)
