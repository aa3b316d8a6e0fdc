"""What people see of a run on Prefect's page."""

from flows.report import gate_page, tuning_page
from promptstore.testing.tuning_samples import evaluation_of
from promptstore.tuning.gate import GatePolicy
from promptstore.tuning.gate_rules import decide
from promptstore.tuning.job_gate import GateOutcome
from promptstore.tuning.job_result import JobResult, TunedTask

RESULT = JobResult(
    "nightly-1",
    "smollm2-135m",
    (
        TunedTask(
            "sst2", "accuracy", untuned=0.5, tuned=0.91, version="sst2:3", digest="ab" * 32, mlflow_run="0f" * 16
        ),
        TunedTask("mood", "accuracy", failure="the loss | is\nnot finite"),
    ),
    "all told",
)


def test_every_task_has_a_row_with_links_to_its_run_and_its_version() -> None:
    page = tuning_page(RESULT, mlflow_uri="http://mlflow:5000/", server_url="http://serving:8080").splitlines()
    assert page[-2] == (
        "| sst2 | accuracy | 0.5000 | 0.9100 | [sst2:3](http://serving:8080/console#sst2:3) `abababababab` | "
        f"[0f0f0f0f](http://mlflow:5000/#/runs/{'0f' * 16}) |  |"
    )
    assert page[-1] == r"| mood | accuracy | - | - | none |  | the loss \| is not finite |"


def test_a_run_in_a_database_without_a_server_is_no_link() -> None:
    page = tuning_page(RESULT, mlflow_uri="sqlite:///mlflow.db", server_url="http://serving:8080")
    assert f"| {'0f' * 16} |" in page


def test_a_label_cannot_break_the_table_of_the_gate() -> None:
    verdict = decide(evaluation_of(["a|b"] * 20, ["a|b"] * 20), None, GatePolicy(min_recall=0.5))
    page = gate_page(GateOutcome("sst2", 1, "ab" * 32, "production", None, verdict)).splitlines()
    assert page[-1].startswith(r"| recall of a\|b | yes | 100.0% of the rows labelled 'a\|b' are found")
