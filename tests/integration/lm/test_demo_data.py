"""The demo's tasks are ordinary task files over the real human-rated sets."""

from collections import Counter
from pathlib import Path

import pytest

from promptstore.errors import InvalidInputError, NotFoundError
from promptstore.lm.assets import HUTTO, asset_file
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import load_settings
from promptstore.tuning.data import load_rows, load_task_rows
from promptstore.tuning.demo_data import write_demo_data
from promptstore.tuning.task_check import check_task
from promptstore.tuning.task_file import read_task

pytestmark = pytest.mark.lm


@pytest.fixture(scope="module")
def cache_dir() -> Path:
    found = load_settings().cache_dir
    try:
        asset_file(found, HUTTO, "tweets_GroundTruth.txt")
    except NotFoundError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def task_paths(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_demo_data(cache_dir, tmp_path_factory.mktemp("demo"))


def test_both_tasks_are_ready_to_tune_on_the_demos_model(task_paths: list[Path], smollm2: FrozenModel) -> None:
    assert [path.name for path in task_paths] == ["sentiment.toml", "source.toml"]
    for path in task_paths:
        task = read_task(path)
        train, validation = load_task_rows(task)
        assert check_task(task, {"train": train, "validation": validation}, TaskEncoder(task, smollm2)) == []


def test_labels_are_equally_frequent_in_every_split(task_paths: list[Path]) -> None:
    for path in task_paths:
        for rows, size in zip(load_task_rows(read_task(path)), (2000, 300), strict=True):
            counts = Counter(row["label"] for row in rows)
            assert len(rows) == size
            assert len(set(counts.values())) == 1, counts


def test_no_text_is_in_both_splits_not_even_of_the_two_tasks(task_paths: list[Path]) -> None:
    folder = task_paths[0].parent
    texts = {
        split: {
            row["text"].casefold()
            for task in ("sentiment", "source")
            for row in load_rows(str(folder / f"{task}.{split}.jsonl"))
        }
        for split in ("train", "validation")
    }

    assert texts["train"]
    assert not texts["train"] & texts["validation"]


def test_the_same_files_are_written_every_time(task_paths: list[Path], cache_dir: Path, tmp_path: Path) -> None:
    write_demo_data(cache_dir, tmp_path)
    before = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}

    write_demo_data(cache_dir, tmp_path)

    assert {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())} == before
    assert {path.name: path.read_bytes() for path in sorted(task_paths[0].parent.iterdir())} == before


def test_the_quick_demo_uses_the_first_of_the_same_rows(
    task_paths: list[Path], cache_dir: Path, tmp_path: Path
) -> None:
    write_demo_data(cache_dir, tmp_path, quick=True)

    for name in ("sentiment.train.jsonl", "source.validation.jsonl"):
        whole, part = (load_rows(str(folder / name)) for folder in (task_paths[0].parent, tmp_path))
        assert 0 < len(part) < len(whole)
        assert list(part) == list(whole[: len(part)])


def test_a_folder_that_cannot_be_written_is_named(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(InvalidInputError, match=r"demo data cannot be written to .*file"):
        write_demo_data(cache_dir, tmp_path / "file")


def test_without_the_assets_it_says_how_to_fetch_them(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="run `promptstore assets fetch`"):
        write_demo_data(tmp_path / "cache", tmp_path / "demo")
