"""`hf:` data through the real `datasets` library, from a folder on this machine that stands for a repository."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOAD = """
import json, sys
from promptstore.tuning.data import load_rows
try:
    rows = load_rows(sys.argv[1])
    print(json.dumps({"rows": list(rows), "numbers": rows.numbers}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    folder = tmp_path / "reviews"
    (folder / "clean").mkdir(parents=True)
    (folder / "clean" / "train.csv").write_text("text,label\ngood,1\nbad,0\n")
    (folder / "clean" / "test.csv").write_text("text,label\nfine,-1\n")
    (folder / "README.md").write_text(
        "---\n"
        "dataset_info:\n"
        "  config_name: clean\n"
        "  features:\n"
        "  - name: text\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': negative\n          '1': positive\n"
        "configs:\n"
        "- config_name: clean\n"
        "  data_files:\n"
        "  - split: train\n    path: clean/train.csv\n"
        "  - split: test\n    path: clean/test.csv\n"
        "---\n"
    )
    return folder


def loaded(source: str, home: Path) -> dict[str, Any]:
    """Loads in a process of its own, because the library reads its settings once, when imported."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, source], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_config_and_split_give_rows_with_the_names_of_classes(data_set: Path, tmp_path: Path) -> None:
    answer = loaded(f"hf:{data_set}:clean/train", tmp_path / "home")

    assert answer.get("rows") == [{"text": "good", "label": "positive"}, {"text": "bad", "label": "negative"}], answer
    assert answer["numbers"] == [1, 2]


def test_a_row_without_label_and_a_slice_of_a_split(data_set: Path, tmp_path: Path) -> None:
    assert loaded(f"hf:{data_set}:clean/test", tmp_path / "home")["rows"] == [{"text": "fine"}]
    assert len(loaded(f"hf:{data_set}:clean/train[:50%]", tmp_path / "home")["rows"]) == 1


@pytest.mark.parametrize(
    ("suffix", "error", "message"),
    [
        (":clean/validation", "InvalidInputError", "validation"),
        (":dirty/train", "InvalidInputError", "dirty"),
    ],
)
def test_an_unknown_split_or_config_is_named(
    data_set: Path, tmp_path: Path, suffix: str, error: str, message: str
) -> None:
    answer = loaded(f"hf:{data_set}{suffix}", tmp_path / "home")

    assert answer.get("error") == error, answer
    assert message in answer["message"]


def test_a_data_set_that_is_nowhere_is_said(tmp_path: Path) -> None:
    answer = loaded("hf:nobody/nothing/train", tmp_path / "home")

    assert answer.get("error") in {"NotFoundError", "StoreUnavailableError"}, answer
    assert "hf:nobody/nothing/train" in answer["message"]
