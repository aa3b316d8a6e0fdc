"""The flow that answers many rows by one version."""

from typing import TYPE_CHECKING

from prefect import flow, task

from flows.parameters import ScoreParameters
from flows.report import report_score
from flows.retrying import is_passing
from promptstore.settings import load_settings

if TYPE_CHECKING:
    from promptstore.batch.score import ScoreSummary


@flow(name="score", flow_run_name="score {parameters.source} by {parameters.ref}")
def score(parameters: ScoreParameters) -> "ScoreSummary":
    """Answer every row into one file. A repeated run goes on where an earlier one ended, with its version."""
    summary = score_rows(parameters)
    report_score(summary)
    return summary


@task(retries=2, retry_delay_seconds=[5, 30], retry_condition_fn=is_passing, persist_result=False)
def score_rows(parameters: ScoreParameters) -> "ScoreSummary":
    """All of the work. What an earlier try wrote is not done again."""
    from promptstore.batch.open import run_score_job

    return run_score_job(parameters.request(), settings=load_settings(model=parameters.model), url=parameters.url)
