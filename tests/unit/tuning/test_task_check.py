"""Every mistake in a task or its data is a finding with its place."""

from dataclasses import replace
from typing import Any

import pytest

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.lm.encoding import TaskEncoder
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning.rows import Rows
from promptstore.tuning.task_check import SHOWN_ROWS, Finding, check_task

LLAMA = tiny_llama()
TASK = TaskSpec(
    "sentiment",
    "classification",
    "Review: {text}\nSentiment:",
    DataSource("train.jsonl", "validation.jsonl"),
    (Label("pos", "positive"), Label("neg", "negative")),
    max_input_tokens=40,
)
TRAIN = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "great", "label": "pos"}]
VALIDATION = [{"text": "fine", "label": "pos"}, {"text": "poor", "label": "neg"}]


def findings(
    task: TaskSpec = TASK, train: list[dict[str, str]] = TRAIN, validation: list[dict[str, str]] = VALIDATION
) -> list[Finding]:
    splits = {"train": Rows.of(train, "train.jsonl"), "validation": Rows.of(validation, "validation.jsonl")}
    return check_task(task, splits, TaskEncoder(task, LLAMA))


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_a_sound_task_has_no_findings() -> None:
    assert findings() == []


def test_a_template_field_that_no_row_has_is_one_error_with_the_columns_there_are() -> None:
    found = findings(replace(TASK, template="Review: {review}\nSentiment:"))

    assert [(each.severity, each.split, each.row, each.field) for each in found] == [
        ("error", "train", None, "review"),
        ("error", "validation", None, "review"),
    ]
    assert "the rows have label, text" in found[0].message


def test_a_row_without_a_field_is_named() -> None:
    found = only(findings(train=[*TRAIN, {"label": "neg"}]))

    assert (found.severity, found.split, found.row, found.field) == ("error", "train", 4, "text")


def test_a_label_that_is_not_in_the_list_is_named_with_row_and_field() -> None:
    found = only(findings(validation=[*VALIDATION, {"text": "so so", "label": "neutral"}]))

    assert found.to_json() == {
        "severity": "error",
        "split": "validation",
        "row": 3,
        "field": "label",
        "message": "label 'neutral' is not among the task's labels pos, neg",
    }


def test_many_rows_with_one_mistake_are_shown_in_part_and_counted() -> None:
    found = findings(train=[*TRAIN, *({"text": f"t{index}", "label": "x"} for index in range(20))])

    assert [each.row for each in found] == [4, 5, 6, 7, 8, None]
    assert found[-1].message == f"the same holds for {20 - SHOWN_ROWS} more rows"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_rows_is_an_error(split: str) -> None:
    empty: dict[str, Any] = {split: []}

    found = only(findings(**empty))

    assert (found.severity, found.split) == ("error", split)
    assert found.message == f"{split}.jsonl has no rows"


def test_an_input_in_both_splits_is_an_error_whatever_its_spaces_and_case() -> None:
    found = only(findings(validation=[*VALIDATION, {"text": "  GOOD ", "label": "neg"}]))

    assert (found.severity, found.split, found.row) == ("error", "validation", 3)
    assert "training rows (row 1)" in found.message


def test_training_on_one_class_is_an_error_and_an_unused_label_a_warning() -> None:
    one_class = only(findings(train=[row for row in TRAIN if row["label"] == "pos"]))
    unused = only(
        findings(
            replace(TASK, labels=(*TASK.labels, Label("mixed", "neutral"))),
            validation=[*VALIDATION, {"text": "both", "label": "mixed"}],
        )
    )

    assert (one_class.severity, one_class.message[:29]) == ("error", "every row has label 'pos'; a ")
    assert (unused.severity, unused.split, unused.message) == ("warning", "train", "no row has label 'mixed'")


def test_verbalisers_that_collide_in_their_first_token_are_an_error() -> None:
    found = only(findings(replace(TASK, labels=(Label("pos", "good film"), Label("neg", "good grief")))))

    assert (found.severity, found.field) == ("error", "labels")
    assert "'pos' and 'neg' begin with the same token" in found.message


def test_long_inputs_are_a_warning_that_counts_them_and_names_the_longest() -> None:
    found = only(
        findings(train=[*TRAIN, {"text": "film " * 60, "label": "neg"}, {"text": "film " * 80, "label": "neg"}])
    )

    assert (found.severity, found.split, found.row) == ("warning", "train", 5)
    assert found.message.startswith("2 of 5 inputs have more than 40 tokens")


def test_a_template_that_leaves_no_room_is_an_error() -> None:
    found = [each for each in findings(replace(TASK, max_input_tokens=3)) if each.severity == "error"]

    assert {each.split for each in found} == {"train", "validation"}
    assert all("the template alone takes" in each.message for each in found)


def test_an_unknown_metric_or_tuning_setting_is_an_error() -> None:
    found = findings(replace(TASK, metric="acuracy", tuning={"step": 10}))

    assert [(each.severity, each.field) for each in found] == [("error", "metric"), ("error", "tuning")]
    assert "did you mean 'steps'?" in found[1].message


def test_an_empty_text_to_generate_is_an_error() -> None:
    task = replace(TASK, kind="generation", labels=(), target_field="answer", template="{text}", metric="exact_match")

    found = only(
        findings(task, [{"text": "q", "answer": "a"}, {"text": "r", "answer": " "}], [{"text": "s", "answer": "b"}])
    )

    assert (found.severity, found.row, found.field) == ("error", 2, "answer")


def test_without_a_model_the_data_is_checked_all_the_same() -> None:
    splits = {"train": Rows.of(TRAIN), "validation": Rows.of([*VALIDATION, {"text": "x", "label": "?"}])}

    assert only(check_task(TASK, splits)).row == 3
