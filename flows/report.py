"""What people see of a run on Prefect's page."""

from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from promptstore.tuning.job_gate import GateOutcome
from promptstore.tuning.job_result import JobResult


def report_tuning(result: JobResult, mlflow_uri: str) -> None:
    """A table with one row for each task, and a link to MLflow where it has an address."""
    create_table_artifact(key="tuned-prompts", table=tuning_table(result), description=tuning_summary(result))
    if mlflow_uri.startswith("http"):
        create_link_artifact(key="mlflow", link=mlflow_uri, link_text="the runs in MLflow")


def tuning_table(result: JobResult) -> list[dict[str, Any]]:
    return [
        {
            "task": each.task,
            "metric": each.metric,
            "untuned": _figure(each.untuned),
            "tuned": _figure(each.tuned),
            "version": each.version or "none",
            "digest": (each.digest or "")[:12],
            "MLflow run": each.mlflow_run or "",
            "seconds": round(each.seconds),
            "failure": each.failure or "",
        }
        for each in result.tasks
    ]


def tuning_summary(result: JobResult) -> str:
    return f"Job **{result.job}** on {result.model}: {len(result.tasks)} prompts. {result.tracking}."


def report_gate(outcome: GateOutcome) -> None:
    """Every rule of the gate with its figures."""
    create_markdown_artifact(key="gate", markdown=gate_page(outcome), description=str(outcome.ref))


def gate_page(outcome: GateOutcome) -> str:
    verdict = outcome.verdict
    against = "nothing" if outcome.against is None else f"{outcome.task}:{outcome.against}"
    lines = [
        f"# {outcome.ref} for `{outcome.alias}`: {verdict.verdict}",
        "",
        f"{verdict.metric} {verdict.candidate:.4f} against {_figure(verdict.production)} ({against}).",
        f"Held-out rows: {verdict.rows}.",
        "",
        "| rule | held | figures |",
        "|---|---|---|",
        *(f"| {check.name} | {'yes' if check.holds else '**no**'} | {check.explanation} |" for check in verdict.checks),
    ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
