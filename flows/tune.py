"""The flow that tunes: one job, one model, any number of prompts fitted together, or apart on a cluster."""

from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.runtime import flow_run

from flows.parameters import TuneParameters
from flows.report import report_tuning
from flows.retrying import is_passing
from promptstore.errors import InvalidInputError
from promptstore.settings import load_settings
from promptstore.wiring import open_prompt_store

if TYPE_CHECKING:
    from promptstore.tuning.job_result import JobResult


@flow(name="tune", flow_run_name="tune {parameters.names}")
def tune(parameters: TuneParameters) -> "JobResult":
    """Fit, judge, log and publish prompts for the named tasks. A repeated run publishes nothing twice."""
    job = parameters.job or str(flow_run.get_id())
    result = tune_on_device(parameters, job) if parameters.fan_out is None else spread(parameters, job)
    settings = load_settings()
    report_tuning(result, mlflow_uri=settings.mlflow_uri, server_url=settings.server_url)
    return result


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def tune_on_device(parameters: TuneParameters, job: str) -> "JobResult":
    """All of the work that needs the model. What an earlier try finished is found again, not done again."""
    from promptstore.tuning.job_open import run_tune_job

    settings = load_settings(model=parameters.model)
    store = open_prompt_store(settings)
    return run_tune_job(
        parameters.tasks,
        job=job,
        settings=settings,
        store=store,
        overrides=parameters.overrides,
        searches=parameters.search,
    )


def spread(parameters: TuneParameters, job: str) -> "JobResult":
    """Tune on a Ray cluster. Raises InvalidInputError: Ray is not installed here."""
    try:
        from flows.tune_on_ray import tune_on_cluster
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"fan_out needs {error.name}: pip install 'promptstore[ray]'") from error
    return tune_on_cluster(parameters, job)
