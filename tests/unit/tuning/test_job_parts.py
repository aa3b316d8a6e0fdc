"""A job split into parts, and one result made of theirs."""

import pytest

from promptstore.core.name import check_name
from promptstore.core.task import DataSource, TaskSpec
from promptstore.errors import StoreUnavailableError
from promptstore.tuning.job_parts import JobPart, joined_result, lack_of_room, split_job
from promptstore.tuning.job_result import JobResult, TunedTask


def tasks(*names: str) -> list[TaskSpec]:
    return [TaskSpec(name, "generation", "{text}", DataSource("train.jsonl", "validation.jsonl")) for name in names]


def split(job: str, *names: str, size: int = 1) -> list[JobPart]:
    return split_job(job, tasks(*names), size=size, overrides={}, git_commit=None)


def result_of(part: JobPart, tracking: str = "all told") -> JobResult:
    return JobResult(
        part.job, "tiny", tuple(TunedTask(task.name, version=f"{task.name}:1") for task in part.tasks), tracking
    )


def test_every_task_is_in_one_part_in_order_and_parts_are_named_after_their_first() -> None:
    parts = split("nightly", "a", "b", "c", "d", "e", size=2)
    assert [[task.name for task in part.tasks] for part in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert [part.job for part in parts] == ["nightly.a", "nightly.c", "nightly.e"]


def test_names_too_long_to_put_together_are_still_names_and_tell_parts_apart() -> None:
    job, long = "j" * 64, "t" * 63
    parts = split(job, f"{long}1", f"{long}2")
    for part in parts:
        check_name(part.job, "job name")
    assert parts[0].job != parts[1].job
    assert [part.job for part in split(job, f"{long}1", f"{long}2")] == [part.job for part in parts]


def test_the_joined_result_has_every_task_in_order_and_says_each_thing_about_tracking_once() -> None:
    parts = split("nightly", "a", "b", "c")
    joined = joined_result("nightly", parts, [result_of(part) for part in parts])
    assert (joined.job, joined.model, joined.tracking) == ("nightly", "tiny", "all told")
    assert [task.version for task in joined.tasks] == ["a:1", "b:1", "c:1"]


def test_a_part_that_failed_says_why_for_each_of_its_tasks_and_the_others_stand() -> None:
    parts = split("nightly", "a", "b", "c", size=2)
    joined = joined_result("nightly", parts, [StoreUnavailableError("no answer"), result_of(parts[1])])
    assert [task.version for task in joined.tasks] == [None, None, "c:1"]
    assert joined.failures == ["a: StoreUnavailableError: no answer", "b: StoreUnavailableError: no answer"]


def test_a_job_of_which_no_part_succeeded_fails_with_the_first_cause() -> None:
    parts = split("nightly", "a", "b")
    with pytest.raises(StoreUnavailableError, match="first"):
        joined_result("nightly", parts, [StoreUnavailableError("first"), ValueError("second")])


def test_a_fit_that_no_node_could_run_is_said_with_what_there_is() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert lack_of_room({"CPU": 2, "GPU": 0.5}, nodes) is None
    assert lack_of_room({"CPU": 4, "GPU": 1}, nodes) == (
        "a fit wants 4 CPU and 1 GPU, which no node of the cluster has (8 CPU, 0 GPU; 2 CPU, 1 GPU)"
    )
    assert str(lack_of_room({"CPU": 1, "GPU": 0}, [])).endswith("(there is none)")
