"""What people see of a run on Prefect's page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

if TYPE_CHECKING:
    from promptstore.batch.score import ScoreSummary
    from promptstore.tuning.job_due import Due
    from promptstore.tuning.job_gate import GateOutcome
    from promptstore.tuning.job_result import JobResult, TunedTask
    from promptstore.tuning.upgrade_release import UpgradeResult


def report_tuning(result: "JobResult", *, mlflow_uri: str, server_url: str) -> None:
    """A table with one row for each task, for programs; the same for people, with links to each run and version."""
    create_table_artifact(key="tuned-prompts", table=tuning_table(result), description=tuning_summary(result))
    page = tuning_page(result, mlflow_uri=mlflow_uri, server_url=server_url)
    create_markdown_artifact(key="results", markdown=page, description=tuning_summary(result))


def tuning_table(result: "JobResult") -> list[dict[str, Any]]:
    return [
        {
            "task": each.task,
            "metric": each.metric,
            "untuned": _figure(each.untuned),
            "text prompt": _figure(each.text_prompt),
            "tuned": _figure(each.tuned),
            **_of_members(each),
            "version": each.version or "none",
            "digest": (each.digest or "")[:12],
            "MLflow run": each.mlflow_run or "",
            "seconds": round(each.seconds),
            "failure": each.failure or "",
        }
        for each in result.tasks
    ]


def tuning_page(result: "JobResult", *, mlflow_uri: str, server_url: str) -> str:
    """mlflow_uri: runs are links where it is the address of a server. server_url: whose page shows the versions."""
    lines = [
        f"# {result.job}",
        "",
        tuning_summary(result),
        "",
        "| task | metric | untuned | tuned | version | MLflow run | failure |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in result.tasks:
        run = each.mlflow_run or ""
        if run and mlflow_uri.startswith("http"):
            run = f"[{run[:8]}]({mlflow_uri.rstrip('/')}/#/runs/{run})"
        version = "none"
        if each.version and each.digest:
            version = f"[{each.version}]({server_url.rstrip('/')}/console#{each.version}) `{each.digest[:12]}`"
        members = ", ".join(f"{name} {value}" for name, value in _of_members(each).items())
        figures = f"{_figure(each.untuned)} | {_figure(each.tuned)}{f' ({members})' if members else ''}"
        failure = _cell(each.failure or "")
        lines.append(f"| {each.task} | {each.metric} | {figures} | {version} | {run} | {failure} |")
    return "\n".join(lines)


def _of_members(task: "TunedTask") -> dict[str, Any]:
    """What an ensemble is compared with: its members alone."""
    if task.members == 1:
        return {}
    figures = {"average": _figure(task.member_average), "best": _figure(task.member_best)}
    return {"members": task.members, **figures}


def tuning_summary(result: "JobResult") -> str:
    return f"Job **{result.job}** on {result.model}: {len(result.tasks)} prompts. {result.tracking}."


def report_gate(outcome: "GateOutcome") -> None:
    """Every rule of the gate with its figures."""
    create_markdown_artifact(key="gate", markdown=gate_page(outcome), description=str(outcome.ref))


def gate_page(outcome: "GateOutcome") -> str:
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
        *(
            f"| {_cell(check.name)} | {'yes' if check.holds else '**no**'} | {_cell(check.explanation)} |"
            for check in verdict.checks
        ),
    ]
    return "\n".join(lines)


def report_due(found: "Sequence[Due]") -> None:
    """Every task that was looked at, and why it is due or not."""
    table = [
        {"task": each.task, "due": "yes" if each.reasons else "no", "why": "; ".join(each.reasons) or each.fresh}
        for each in found
    ]
    create_table_artifact(key="due", table=table, description="which tasks are due, and why")


def report_score(summary: "ScoreSummary") -> None:
    """What was answered, how often each label was said, and the metrics where rows had labels."""
    facts = {"rows": summary.rows, "found": summary.found, "labelled": summary.labelled, **summary.answers}
    figures = {name: _figure(value) for name, value in summary.metrics.items()}
    table = [{"what": name, "figure": value} for name, value in {**facts, **figures}.items()]
    create_table_artifact(key="score", table=table, description=str(summary))


def report_upgrade(result: "UpgradeResult") -> None:
    """One row for each alias: what it named, what is ready for it, and whether that may take its place."""
    table = []
    for each in result.upgrade.tasks:
        row = {"task": each.task, "start": each.start, "version": each.version or "none", "why": each.failure or ""}
        for outcome in each.outcomes:
            verdict = outcome.verdict
            table.append(
                {
                    **row,
                    "alias": outcome.alias,
                    "in its place": f"{each.task}:{outcome.against}",
                    "metric": verdict.metric,
                    "old": _figure(verdict.production),
                    "new": _figure(verdict.candidate),
                    "gate": verdict.verdict,
                    "why": "; ".join(check.explanation for check in verdict.failures),
                }
            )
        if not each.outcomes:
            table.append(row)
    create_table_artifact(key="upgrade", table=table, description=str(result))


def report_care(facts: Mapping[str, Any]) -> None:
    """What was done for the store."""
    table = [{"what": name.replace("_", " "), "found": _spoken(value)} for name, value in facts.items()]
    create_table_artifact(key="care", table=table, description="what was done for the store")


def _spoken(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(each) for each in value) or "none"
    return "-" if value is None else str(value)


def _cell(text: str) -> str:
    """Of a table in Markdown: labels and data may hold anything."""
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
