"""What makes a task due, and what does not."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from promptstore.core.task import Label, TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import Settings
from promptstore.testing.job_place import JobPlace
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning.job_due import Due, DueRules, due_tasks, job_name
from promptstore.tuning.task_file import read_task

pytestmark = pytest.mark.slow
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def tuned(model: FrozenModel, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tuned task."""
    place = JobPlace(tmp_path_factory.mktemp("tuned"))
    shutil.copy(empty_mlflow, place.folder / "mlflow.db")
    place.tune(model, place.task("sst2"), steps=48)
    return place.folder


@pytest.fixture
def place(tuned: Path, tmp_path: Path) -> JobPlace:
    shutil.copytree(tuned, tmp_path / "copy")
    return JobPlace(tmp_path / "copy")


@pytest.fixture
def settings(place: JobPlace, model_folder: Path) -> Settings:
    return place.settings.model_copy(update={"model": str(model_folder), "dtype": "float32"})


@pytest.fixture
def task(place: JobPlace) -> TaskSpec:
    return read_task(place.folder / "sst2.toml")


def look(
    place: JobPlace, settings: Settings, *tasks: TaskSpec, rules: DueRules | None = None, now: datetime = NOW
) -> list[Due]:
    return due_tasks(tasks, place.store(), settings, rules or DueRules(), now=now)


def test_a_task_tuned_on_the_same_data_model_and_template_is_not_due(
    place: JobPlace, settings: Settings, task: TaskSpec
) -> None:
    (found,) = look(place, settings, task)
    assert found.reasons == ()
    assert str(found) == "sst2: not due, sst2:1 rests on the same data, task and model"


def test_data_that_only_moved_or_changed_their_format_are_the_same_data(
    place: JobPlace, settings: Settings, task: TaskSpec
) -> None:
    moved = shutil.copy(task.data.train, place.folder / "elsewhere.jsonl")
    (found,) = look(place, settings, replace(task, data=replace(task.data, train=str(moved))))
    assert not found.reasons


def test_a_task_that_was_never_tuned_is_due(place: JobPlace, settings: Settings) -> None:
    (found,) = look(place, settings, place.task("mood"))
    assert found.reasons == ("never tuned",)


def test_one_more_row_makes_its_task_due_and_no_other(place: JobPlace, settings: Settings, model: FrozenModel) -> None:
    place.tune(model, place.task("mood"), job="mood")
    with (place.folder / "sst2.train.jsonl").open("a") as file:
        file.write('{"text": "a great film", "label": "yes"}\n')
    tasks = [read_task(place.folder / f"{name}.toml") for name in ("sst2", "mood")]
    changed, same = look(place, settings, *tasks)
    assert changed.reasons == ("the data changed since sst2:1",)
    assert not same.reasons
    assert not look(place, settings, tasks[0], rules=DueRules(on_new_data=False))[0].reasons


def test_a_changed_template_or_label_is_named(place: JobPlace, settings: Settings, task: TaskSpec) -> None:
    labels = (Label("yes", "good"), Label("no", "bad"))
    (found,) = look(place, settings, replace(task, template="Film: {text} It was", labels=labels))
    assert found.reasons == ("labels and template changed since sst2:1",)


def test_another_base_model_is_named(place: JobPlace, settings: Settings, task: TaskSpec, tmp_path: Path) -> None:
    other = tiny_llama(seed=5)
    other.network.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    (found,) = look(place, settings.model_copy(update={"model": str(tmp_path / "other")}), task)
    assert found.reasons == ("sst2:1 belongs to another base model, testing/tiny-llama",)


def test_age_makes_due_and_says_how_old(place: JobPlace, settings: Settings, task: TaskSpec) -> None:
    rules = DueRules(max_age=timedelta(days=7))
    assert not look(place, settings, task, rules=rules)[0].reasons
    (found,) = look(place, settings, task, rules=rules, now=datetime.now(UTC) + timedelta(days=8, hours=1))
    assert found.reasons == ("sst2:1 is 8 days old",)


def test_a_metric_that_fell_on_fresh_rows_is_measured_once(place: JobPlace, settings: Settings, task: TaskSpec) -> None:
    store = place.store()
    store.promote("sst2:1", force=True, reason="test")
    lines = (
        Path(task.data.validation).read_text().replace('"yes"', '"?"').replace('"no"', '"yes"').replace('"?"', '"no"')
    )
    Path(task.data.validation).write_text(lines)
    rules = DueRules(on_new_data=False, max_decay=0.1)
    (found,) = look(place, settings, task, rules=rules)
    assert "accuracy of sst2:1 fell from" in found.reasons[0]
    (again,) = look(place, settings, task, rules=rules)
    assert again == found
    said = [each for each in place.store().resolve("sst2:1").attestations if each.kind == "evaluation"]
    assert len(said) == 1


def test_equal_work_has_an_equal_name_and_new_work_another(
    place: JobPlace, settings: Settings, task: TaskSpec, model: FrozenModel
) -> None:
    rules = DueRules(max_age=timedelta(0))
    first = look(place, settings, task, rules=rules)
    assert job_name(first, {}) == job_name(look(place, settings, task, rules=rules), {})
    assert job_name(first, {}) != job_name(first, {"steps": 3})
    place.tune(model, task, job="again")
    assert job_name(first, {}) != job_name(look(place, settings, task, rules=rules), {})


def test_what_a_stopped_retraining_made_goes_to_its_gate_once(
    place: JobPlace, settings: Settings, model: FrozenModel
) -> None:
    mood, later = place.task("mood"), datetime.now(UTC) + timedelta(minutes=5)
    place.tune(model, mood, job="by-hand")
    assert look(place, settings, mood, now=later)[0].left is None, "what people tune they promote themselves"
    place.tune(model, place.task("mood", is_mislabelled=True), job="retrain-0123")
    mislabelled = read_task(place.folder / "mood.toml")
    (found,) = look(place, settings, mislabelled, now=later)
    assert (found.reasons, found.left) == ((), "mood:2")
    assert (
        str(found) == "mood: not due, mood:2 was made by a retraining and never decided about; it goes to its gate now"
    )
    assert look(place, settings, mislabelled)[0].left is None, "it may be on its way"
    place.store().attest("mood:2", "gate", {"verdict": "pass", "alias": "production"})
    assert look(place, settings, mislabelled, now=later)[0].left == "mood:2", "stopped between gate and move"
    place.store().attest("mood:2", "gate", {"verdict": "fail", "alias": "staging"})
    assert look(place, settings, mislabelled, now=later)[0].left == "mood:2", "that was another alias's gate"
    place.store().attest("mood:2", "gate", {"verdict": "fail", "alias": "production"})
    assert look(place, settings, mislabelled, now=later)[0].left is None


def test_what_people_decided_is_not_asked_again(place: JobPlace, settings: Settings, model: FrozenModel) -> None:
    mood, later = place.task("mood"), datetime.now(UTC) + timedelta(minutes=5)
    place.tune(model, mood, job="retrain-0123")
    assert look(place, settings, mood, now=later)[0].left == "mood:1"
    store = place.store()
    store.promote("mood:1", force=True, reason="test")
    store.delete_alias("mood", "production", expected=1, reason="worse than it looked")
    assert look(place, settings, mood, now=later)[0].left is None, "people took it back"
    place.tune(model, mood, job="retrain-4567", seed=1)
    assert look(place, settings, mood, now=later)[0].left == "mood:2"
    store.attest("mood:2", "approval", {"approved": False, "alias": "production"})
    assert look(place, settings, mood, now=later)[0].left is None, "somebody said no"
