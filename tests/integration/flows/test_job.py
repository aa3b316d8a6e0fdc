"""A job ends with versions and everything that led to them, however often it is repeated and whatever breaks."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptstore.core.ensemble import Ensemble
from promptstore.core.operation import Operation
from promptstore.errors import ConflictError, InvalidInputError, NotFoundError, StoreUnavailableError
from promptstore.lm.frozen import FrozenModel
from promptstore.store.ledger import Ledger
from promptstore.store.payload import encode_payload
from promptstore.testing.job_place import FROM_TOKENS, QUICK, JobPlace
from promptstore.tracking.mlflow_sink import connect
from promptstore.tuning.evaluate import evaluate
from promptstore.tuning.job import tune_tasks
from promptstore.tuning.job_folder import job_folder
from promptstore.tuning.job_plan import plan_task
from promptstore.tuning.job_progress import SilentProgress
from promptstore.tuning.job_result import JobResult, TunedTask
from promptstore.tuning.job_spool import resend
from promptstore.tuning.task_file import read_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(model: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobPlace, Any, Any]:
    """One job of two tasks, its result, and MLflow's client."""
    place = JobPlace(tmp_path_factory.mktemp("told"))
    result = place.tune(model, place.task("sst2"), place.task("mood"))
    return place, result, connect(place.mlflow_uri)


def steps(client: Any, run_id: str, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, metric)]


def test_every_task_of_a_job_becomes_a_version(told: tuple[JobPlace, Any, Any]) -> None:
    place, result, _ = told
    assert [each.version for each in result.tasks] == ["sst2:1", "mood:1"]
    assert not result.failures
    assert [str(place.store().resolve(f"{each.task}@sha256:{each.digest}")) for each in result.tasks] == [
        "sst2:1",
        "mood:1",
    ]


def test_mlflow_holds_settings_every_step_validations_and_both_judgements(told: tuple[JobPlace, Any, Any]) -> None:
    _, result, client = told
    run = client.get_run(result.tasks[0].mlflow_run)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "24"
    assert run.data.params["task.template"] == "Review: {text} Sentiment:"
    for name in ("loss", "learning_rate", "gradient_norm", "examples_per_s"):
        assert steps(client, run.info.run_id, f"train/{name}") == list(range(1, 25))
    assert {8, 16, 24} <= set(steps(client, run.info.run_id, "validation/accuracy"))
    assert run.data.metrics["tuned/accuracy"] == pytest.approx(result.tasks[0].tuned)
    assert run.data.metrics["untuned/accuracy"] == pytest.approx(result.tasks[0].untuned)
    assert run.data.metrics["text_prompt/accuracy"] == pytest.approx(result.tasks[0].text_prompt)


def test_mlflow_holds_how_the_machine_did(told: tuple[JobPlace, Any, Any]) -> None:
    _, result, client = told
    metrics = client.get_run(result.tasks[0].mlflow_run).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert "system/cpu_utilization_percentage" in metrics


def test_mlflow_holds_the_data_sets_by_their_digest(told: tuple[JobPlace, Any, Any]) -> None:
    _, result, client = told
    inputs = client.get_run(result.tasks[0].mlflow_run).inputs.dataset_inputs
    rows = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in inputs}
    assert rows["train"] == 120
    assert rows["validation"] + rows["test"] == 120
    assert all(len(json.loads(each.dataset.profile)["sha256"]) == 64 for each in inputs)


def test_mlflow_holds_the_published_bytes_and_the_figures(told: tuple[JobPlace, Any, Any]) -> None:
    place, result, client = told
    run_id = result.tasks[0].mlflow_run
    best = Path(client.download_artifacts(run_id, "prompts/best.safetensors")).read_bytes()
    assert best == encode_payload(place.store().pull("sst2:1", for_model=None).prompt)
    figures = {each.path for each in client.list_artifacts(run_id, "figures")}
    names = ("confusion_untuned", "confusion_text_prompt", "confusion_tuned", "loss", "validation")
    assert figures == {f"figures/{name}.png" for name in names}


def test_run_and_manifest_name_each_other(told: tuple[JobPlace, Any, Any]) -> None:
    place, result, client = told
    for each in result.tasks:
        tags = client.get_run(each.mlflow_run).data.tags
        assert (tags["version"], tags["digest"], tags["job"]) == (each.version, each.digest, "job")
        manifest = place.store().manifest(each.digest)
        assert manifest.provenance.mlflow_run == each.mlflow_run
        assert manifest.provenance.git_commit == "0" * 40
        assert manifest.metrics["accuracy"] == each.tuned
        assert manifest.metrics["untuned_accuracy"] == each.untuned


def test_a_prompts_run_is_a_child_of_its_tasks_share_of_the_job(told: tuple[JobPlace, Any, Any]) -> None:
    _, result, client = told
    run = client.get_run(result.tasks[0].mlflow_run)
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert client.get_experiment(parent.info.experiment_id).name == "promptstore/sst2"
    assert (parent.info.run_name, parent.info.status) == ("job", "FINISHED")


def test_what_is_published_names_no_folder_of_this_machine(told: tuple[JobPlace, Any, Any]) -> None:
    place, result, _ = told
    assert str(place.folder) not in place.store().manifest(result.tasks[0].digest).to_bytes().decode()


def test_repeating_a_finished_job_publishes_nothing_and_says_the_same(model: FrozenModel, place: JobPlace) -> None:
    task = place.task("sst2")
    first = place.tune(model, task)
    again = place.tune(model, task)
    assert again.tasks == first.tasks
    assert len(place.store().state.task("sst2").versions) == 1


def test_baselines_are_judged_again_only_where_data_or_question_are_new(model: FrozenModel, place: JobPlace) -> None:
    client = connect(place.mlflow_uri)

    def judged(result: JobResult) -> set[str]:
        run_id = result.tasks[0].mlflow_run
        assert client.get_run(run_id).data.metrics["untuned/accuracy"] == result.tasks[0].untuned
        return {Path(each.path).stem for each in client.list_artifacts(run_id, "evaluation")}

    task = place.task("sst2")
    everything = {"untuned", "text_prompt", "tuned"}
    first = place.tune(model, task)
    assert judged(first) == everything
    second = place.tune(model, task, job="other-seed", seed=7)
    assert judged(second) == {"tuned"}
    assert [each.untuned for each in second.tasks] == [each.untuned for each in first.tasks]
    assert [each.text_prompt for each in second.tasks] == [each.text_prompt for each in first.tasks]
    asked_otherwise = replace(task, template="{text} It was")
    assert judged(place.tune(model, asked_otherwise, job="template")) == everything
    assert judged(place.tune(model, place.task("sst2", is_mislabelled=True), job="labels")) == everything


class Killed(SilentProgress):
    """Stands for a process that is killed when the fit has come to a step."""

    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, task: str, *, step: int, last_step: int, loss: float) -> None:  # noqa: ARG002
        if step == self._at:
            raise KeyboardInterrupt


def test_a_job_killed_in_its_fit_ends_as_if_nothing_had_happened(
    model: FrozenModel, place: JobPlace, tmp_path: Path
) -> None:
    task = place.task("sst2")
    with pytest.raises(KeyboardInterrupt):
        tune_tasks([task], job="job", tools=place.tools(model, "job", Killed(at=13)), overrides=FROM_TOKENS)
    (result,) = place.tune(model, task).tasks
    client = connect(place.mlflow_uri)
    assert steps(client, str(result.mlflow_run), "train/loss") == list(range(1, 25))
    assert client.get_run(result.mlflow_run).info.status == "FINISHED"
    alone = JobPlace(tmp_path / "alone")
    (uninterrupted,) = alone.tune(model, alone.task("sst2")).tasks
    np.testing.assert_allclose(
        place.store().pull("sst2:1", for_model=None).prompt.embeddings,
        alone.store().pull("sst2:1", for_model=None).prompt.embeddings,
        rtol=1e-4,
        atol=1e-5,
    )
    assert result.tuned == uninterrupted.tuned


def test_a_job_searches_for_what_is_not_given_and_a_repeated_one_keeps_what_it_found(
    model: FrozenModel, place: JobPlace
) -> None:
    def tune(**given: Any) -> TunedTask:
        tools = place.tools(model, "searched", *([Killed(at=13)] if not given.pop("ends", True) else []))
        quick = {name: value for name, value in QUICK.items() if name != "learning_rate"}
        given = {**quick, "evaluate_every": 4, "initialise": "vocabulary", **given}
        (found,) = tune_tasks([place.task("sst2")], job="searched", tools=tools, overrides=given, searches=True).tasks
        return found

    with pytest.raises(KeyboardInterrupt):
        tune(ends=False)
    note = json.loads((place.settings.state_dir / "jobs/searched/tasks/sst2/search.json").read_bytes())
    assert note["candidates"] == 3
    assert note["chosen"]["initialise"] == "vocabulary"
    result = tune()
    params = connect(place.mlflow_uri).get_run(result.mlflow_run).data.params
    assert (params["searched"], float(params["learning_rate"])) == ("3", note["chosen"]["learning_rate"])
    tools, given = place.tools(model, "nothing"), {"initialise": "labels", "learning_rate": 0.1}
    with pytest.raises(InvalidInputError, match="nothing to search for sst2"):
        tune_tasks([place.task("sst2")], job="nothing", tools=tools, overrides=given, searches=True)
    with pytest.raises(InvalidInputError, match="other search"):
        place.tune(model, place.task("sst2"), job="searched", evaluate_every=4, initialise="vocabulary")


class Unreachable(Ledger):
    """A ledger whose store is down for every change."""

    def commit(self, *_: Any, **__: Any) -> Sequence[Operation]:  # type: ignore[override]
        raise StoreUnavailableError("the store is down")


def test_a_store_that_is_down_at_the_end_costs_nothing_but_another_try(
    model: FrozenModel, place: JobPlace, caplog: pytest.LogCaptureFixture
) -> None:
    task = place.task("sst2")
    tools = place.tools(model, "job")
    tools.store.ledger.__class__ = Unreachable
    with pytest.raises(StoreUnavailableError, match="is down"):
        tune_tasks([task], job="job", tools=tools, overrides=FROM_TOKENS)
    assert "tried again at the end" in caplog.text
    fits = Killed(at=1)
    result = tune_tasks([task], job="job", tools=place.tools(model, "job", fits), overrides=FROM_TOKENS)
    assert result.tasks[0].version == "sst2:1"


def test_a_job_whose_folder_is_lost_finds_its_version_through_mlflow(model: FrozenModel, place: JobPlace) -> None:
    task = place.task("sst2")
    first = place.tune(model, task)
    (place.settings.state_dir / "jobs").rename(place.folder / "lost")
    again = place.tune(model, task, job="job")
    assert again.tasks[0].version == first.tasks[0].version == "sst2:1"
    assert len(place.store().state.task("sst2").versions) == 1


def test_without_mlflow_the_fit_ends_well_and_the_spool_tells_mlflow_later(
    model: FrozenModel, place: JobPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = "http://127.0.0.1:9"
    task = place.task("sst2")
    with monkeypatch.context() as patch:
        patch.setattr(JobPlace, "mlflow_uri", property(lambda _: down))
        result = place.tune(model, task)
    assert result.tasks[0].version == "sst2:1"
    assert result.tasks[0].mlflow_run is None
    assert "could not be sent" in result.tracking
    assert down in result.tracking
    assert [report.spooled for report in resend(place.settings)] == [0]
    assert resend(place.settings) == []
    client = connect(place.mlflow_uri)
    experiment = client.get_experiment_by_name("promptstore/sst2").experiment_id
    (run,) = client.search_runs([experiment], filter_string="tags.role = 'prompt'")
    assert run.data.tags["digest"] == result.tasks[0].digest
    assert steps(client, run.info.run_id, "train/loss") == list(range(1, 25))
    assert run.info.status == "FINISHED"


def test_a_job_begun_with_other_data_or_settings_is_refused_by_name(model: FrozenModel, place: JobPlace) -> None:
    place.tune(model, place.task("sst2"))
    with pytest.raises(InvalidInputError, match="begun with other settings"):
        place.tune(model, place.task("sst2"), learning_rate=0.1)
    with pytest.raises(InvalidInputError, match="begun with other data"):
        place.tune(model, place.task("sst2", is_mislabelled=True))


def test_a_job_that_runs_already_is_not_run_twice(model: FrozenModel, place: JobPlace) -> None:
    with job_folder(place.settings.state_dir / "jobs", "job"), pytest.raises(ConflictError, match="is running already"):
        place.tune(model, place.task("sst2"))


def test_a_prompt_that_diverges_says_why_and_the_others_go_on(model: FrozenModel, place: JobPlace) -> None:
    np.save(place.folder / "huge.npy", np.full((8, model.hidden_size), 3e38, dtype=np.float32))
    bad = place.task_file("mood")
    bad.write_text(bad.read_text() + f'[tuning]\ninitialise = "file:{place.folder / "huge.npy"}"\n')
    tasks = [read_task(bad), place.task("sst2")]
    result = tune_tasks(tasks, job="job", tools=place.tools(model, "job"), overrides=QUICK)
    diverged, good = result.tasks
    assert diverged.version is None
    assert "learning rate" in str(diverged.failure)
    assert good.version == "sst2:1"
    assert [failure.split(":")[0] for failure in result.failures] == ["mood"]
    assert "mood" not in place.store().state.tasks


def test_a_warm_start_names_its_parent_also_when_the_job_is_repeated(model: FrozenModel, place: JobPlace) -> None:
    task = place.task("sst2")
    (first,) = place.tune(model, task, job="first").tasks
    store = place.store()
    store.promote("sst2:1", "best")
    start = {"initialise": "version:sst2@best", "learning_rate": 0.01}
    (second,) = place.tune(model, task, job="second", **start).tasks
    store.refresh()
    store.promote("sst2:2", "best")
    (again,) = place.tune(model, task, job="second", **start).tasks
    assert again == second
    assert place.store().manifest(str(second.digest)).provenance.parent == first.digest


def test_an_ensemble_is_fitted_judged_and_published_as_one_version(model: FrozenModel, place: JobPlace) -> None:
    task, asked = place.task("sst2"), {"ensemble": 3, "combination": "vote"}
    tools = place.tools(model, "three", Killed(at=13))
    with pytest.raises(KeyboardInterrupt):
        tune_tasks([task], job="three", tools=tools, overrides={**FROM_TOKENS, **asked})
    (result,) = place.tune(model, task, job="three", **asked).tasks
    pulled = place.store().pull("sst2:1", for_model=model.fingerprint)
    assert pulled.prompt.ensemble == pulled.manifest.payload.ensemble == Ensemble(3, "vote")
    assert (result.members, result.num_virtual_tokens, result.parameters) == (3, 8, 3 * 8 * model.hidden_size)
    (alone,) = place.tune(model, task, job="alone").tasks
    own = place.store().pull(str(alone.version), for_model=None).prompt
    np.testing.assert_allclose(pulled.prompt.members[0].embeddings, own.embeddings, atol=5e-3)
    assert not np.allclose(pulled.prompt.members[1].embeddings, own.embeddings, atol=5e-2)
    judged = evaluate(model, task, pulled.prompt, plan_task(task, {}, settings=place.settings).held_out)
    assert result.tuned == judged.value == pulled.manifest.metrics["accuracy"]
    figures = {"member_average_accuracy": result.member_average, "member_best_accuracy": result.member_best}
    assert judged.member_metrics == figures
    assert figures.items() <= pulled.manifest.metrics.items()
    assert place.tune(model, task, job="three", **asked).tasks == (result,)


def test_mlflow_holds_a_run_for_each_member_of_an_ensemble(model: FrozenModel, place: JobPlace) -> None:
    (result,) = place.tune(model, place.task("sst2"), ensemble=2).tasks
    client = connect(place.mlflow_uri)
    experiment = client.get_experiment_by_name("promptstore/sst2").experiment_id
    members = client.search_runs([experiment], filter_string="tags.role = 'member'", order_by=["run_name"])
    assert [each.data.params["seed"] for each in members] == ["0", "1"]
    assert {each.data.tags["mlflow.parentRunId"] for each in members} == {result.mlflow_run}
    for each in members:
        assert steps(client, each.info.run_id, "train/loss") == list(range(1, 25))
        assert (each.data.tags["digest"], each.info.status) == (result.digest, "FINISHED")
    run = client.get_run(result.mlflow_run)
    assert run.data.metrics["tuned/member_average_accuracy"] == pytest.approx(result.member_average)
    stored = Path(client.download_artifacts(result.mlflow_run, "prompts/ensemble.safetensors")).read_bytes()
    assert stored == encode_payload(place.store().pull("sst2:1", for_model=None).prompt)


def test_an_ensemble_starts_from_the_members_of_another(model: FrozenModel, place: JobPlace) -> None:
    task = place.task("sst2")
    place.tune(model, task, job="first", ensemble=2)
    still = {"learning_rate": 1e-9, "steps": 1, "warmup_steps": 0}
    place.tune(model, task, job="second", ensemble=2, initialise="version:sst2:1", **still)
    place.tune(model, task, job="third", initialise="version:sst2:1", **still)
    first, second, third = (place.store().pull(f"sst2:{at}", for_model=None).prompt for at in (1, 2, 3))
    np.testing.assert_allclose(second.embeddings, first.embeddings, atol=1e-6)
    np.testing.assert_allclose(third.embeddings, first.members[0].embeddings, atol=1e-6)


def test_a_new_task_starts_from_the_stored_prompt_that_serves_it_best(model: FrozenModel, place: JobPlace) -> None:
    new = place.task("reviews")
    with pytest.raises(NotFoundError, match="'nearest' finds no prompt of another task"):
        place.tune(model, new, job="too-early", initialise="nearest")
    alike, _ = place.tune(model, place.task("sst2"), place.task("odd", is_mislabelled=True), job="first").tasks
    (found,) = place.tune(model, new, job="second", initialise="nearest", learning_rate=0.01).tasks
    assert place.store().manifest(str(found.digest)).provenance.parent == alike.digest
