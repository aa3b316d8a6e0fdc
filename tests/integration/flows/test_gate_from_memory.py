"""What the job that tuned a version found out about it, a gate on the same machine does not compute again."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from promptstore.core.prompt import SoftPrompt
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import Settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.job_place import QUICK, JobPlace
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning import evaluation_memory, job_open_gate
from promptstore.tuning.data import load_rows
from promptstore.tuning.evaluation import EvaluationCase
from promptstore.tuning.evaluation_memory import open_evaluation_memory
from promptstore.tuning.gate import GatePolicy
from promptstore.tuning.job_gate import gate_version, promote_gated
from promptstore.tuning.job_open import open_base, run_tune_job
from promptstore.tuning.job_open_gate import run_gate_job
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.judge import ModelJudge
from promptstore.tuning.rows import Rows

pytestmark = pytest.mark.slow
NOT_NEEDED = Mock(side_effect=AssertionError("the model is opened"))


@pytest.fixture(scope="module")
def tuned(model_folder: Path, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with two versions, ensembles both, tuned by jobs of this machine."""
    place = JobPlace(tmp_path_factory.mktemp("tuned"))
    shutil.copy(empty_mlflow, place.folder / "mlflow.db")
    settings, store, file = on_cpu(place, model_folder), place.store(), str(place.task_file("sst2"))
    for job, seed in (("first", 0), ("second", 1)):
        run_tune_job([file], job=job, settings=settings, store=store, overrides={**QUICK, "ensemble": 2, "seed": seed})
    return place.folder


def on_cpu(place: JobPlace, model_folder: Path) -> Settings:
    return place.settings.model_copy(update={"model": str(model_folder), "device": "cpu", "dtype": "float32"})


@pytest.fixture
def place(tuned: Path, tmp_path: Path) -> JobPlace:
    """A copy of that place, for one test alone."""
    shutil.copytree(tuned, tmp_path, dirs_exist_ok=True)
    return JobPlace(tmp_path)


@pytest.fixture
def settings(place: JobPlace, model_folder: Path) -> Settings:
    return on_cpu(place, model_folder)


@pytest.fixture
def store(place: JobPlace) -> PromptStore:
    return place.store()


@pytest.fixture
def file(place: JobPlace) -> str:
    return str(place.folder / "sst2.toml")


def held_out(place: JobPlace) -> Rows:
    return split_validation(load_rows(str(place.folder / "sst2.validation.jsonl")))[1]


def test_a_version_is_gated_from_what_its_job_found_and_to_the_same_verdict(
    place: JobPlace, settings: Settings, store: PromptStore, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"settings": settings, "store": store, "task_file": file}
    policy = GatePolicy(max_drop=1, alpha=0.0001)
    with monkeypatch.context() as patch:
        patch.setattr(job_open_gate, "open_model", NOT_NEEDED)
        promote_gated(store, run_gate_job("sst2:1", **asked), reason="first")
        known = run_gate_job("sst2:2", **asked, policy=policy)
        with pytest.raises(AssertionError, match="is opened"):
            run_gate_job("sst2:2", **asked, policy=GatePolicy(max_latency_ms=60_000))
    judge = ModelJudge(open_base(settings.model, settings))
    anew = gate_version(store, judge, "sst2:2", held_out(place), policy=policy)
    assert known.against == 1
    assert anew == known


def test_another_row_machine_dtype_or_tokenizer_is_judged_anew(
    place: JobPlace,
    settings: Settings,
    store: PromptStore,
    file: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulled = store.pull("sst2:1", for_model=None)
    case = EvaluationCase(pulled.manifest.task, pulled.prompt, held_out(place))
    memory = open_evaluation_memory(settings)
    assert memory.recall(case) is not None
    assert memory.recall(replace(case, task=replace(case.task, metric="macro_f1"))) is not None, "another sum of them"
    assert memory.recall(replace(case, rows=case.rows[1:])) is None
    assert memory.recall(replace(case, task=replace(case.task, template="{text} Sentiment:"))) is None
    nudged = np.nextafter(pulled.prompt.embeddings, np.float32(9))
    assert memory.recall(replace(case, prompt=SoftPrompt(nudged, pulled.prompt.fingerprint))) is None
    assert open_evaluation_memory(settings.model_copy(update={"dtype": "bfloat16"})).fingerprint is None
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "elsewhere")
        assert open_evaluation_memory(settings).fingerprint is None
    copy = place.folder / "model"
    copy.mkdir()
    for each in model_folder.iterdir():
        (copy / each.name).write_bytes(each.read_bytes() + b" " * (each.name == "tokenizer.json"))
    assert open_evaluation_memory(settings.model_copy(update={"model": str(copy)})).fingerprint is None


def test_a_damaged_or_cut_note_is_judged_anew(
    place: JobPlace, settings: Settings, store: PromptStore, file: str
) -> None:
    memory = open_evaluation_memory(settings)
    for at, note in enumerate(sorted(memory.folder.iterdir())):
        note.write_bytes(b"" if at % 2 else note.read_bytes()[:-40])
    assert memory.fingerprint is None
    assert run_gate_job("sst2:1", settings=settings, store=store, task_file=file).has_passed
    assert memory.fingerprint is not None


def test_what_another_model_said_is_not_kept_and_the_oldest_is_forgotten(
    model: FrozenModel, place: JobPlace, settings: Settings, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_memory, "MOST_KEPT", 2)
    memory, task = open_evaluation_memory(settings), place.task("sst2")
    cases = [EvaluationCase(task, None, held_out(place)[:count]) for count in (4, 5, 6)]
    for case, evaluation in zip(cases, ModelJudge(model).evaluate(cases), strict=True):
        memory.keep(model.fingerprint, case, evaluation)
    assert [memory.recall(case) is not None for case in cases] == [False, True, True]
    with pytest.raises(InvalidInputError, match="none of the model in the settings"):
        memory.keep(tiny_llama(seed=1).fingerprint, cases[0], evaluation)


def test_a_gate_whose_figures_are_known_and_a_look_that_finds_nothing_due_load_no_torch() -> None:
    script = (
        "import sys, flows.promote, promptstore.tuning.job_confirm, promptstore.tuning.job_open_gate; "
        "import flows.retrain, promptstore.tuning.job_due, promptstore.tuning.job_names, promptstore.tuning.job_spool; "
        "print([name for name in ('torch', 'transformers', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
