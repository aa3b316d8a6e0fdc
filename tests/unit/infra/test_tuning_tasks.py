"""The benchmarks' tasks fit the rows they are measured on."""

import pytest

from infra.bench.tuning_tasks import DATA, TASKS, load_split


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", TASKS)
def test_every_row_has_the_fields_and_a_label_of_its_task(task: str, split: str) -> None:
    if not DATA.is_dir():
        pytest.skip("needs the folder of labelled tasks; set PROMPTSTORE_BENCH_DATA")
    spec, rows = TASKS[task], load_split(task, split)
    assert {row["label"] for row in rows} <= {label.name for label in spec.labels}
    assert all(set(spec.template_fields) <= set(row) for row in rows)
