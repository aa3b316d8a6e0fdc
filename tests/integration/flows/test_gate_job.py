"""From a version to production and back, without a flow: two writers at once, a move that cannot be confirmed."""

import json
import shutil
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from unittest.mock import Mock

import pytest

from promptstore.core.ref import PromptRef
from promptstore.errors import ConflictError, IncompatibleModelError, InvalidInputError, RefusedError
from promptstore.lm.frozen import FrozenModel
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.job_place import JobPlace
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning import job_open_gate
from promptstore.tuning.data import load_rows
from promptstore.tuning.gate import GatePolicy, GateVerdict
from promptstore.tuning.job_confirm import confirm_promotion
from promptstore.tuning.job_gate import (
    Answer,
    GateOutcome,
    gate_version,
    promote_gated,
    undo_promotion,
    why_no_news,
)
from promptstore.tuning.job_open_gate import run_gate_job
from promptstore.tuning.job_rows import split_validation
from promptstore.tuning.judge import ModelJudge
from promptstore.tuning.rows import Row, Rows
from promptstore.wiring import open_prompt_store

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(place: JobPlace) -> Rows:
    place.task_file("sst2")
    return split_validation(load_rows(str(place.folder / "sst2.validation.jsonl")))[1]


@pytest.fixture
def judge(model: FrozenModel) -> ModelJudge:
    return ModelJudge(model)


@pytest.fixture(scope="module")
def tuned(model: FrozenModel, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions of one task; the third is tuned on wrong labels."""
    place = JobPlace(tmp_path_factory.mktemp("tuned"))
    shutil.copy(empty_mlflow, place.folder / "mlflow.db")
    place.tune(model, place.task("sst2"), job="first")
    place.tune(model, place.task("sst2"), job="second", seed=1)
    place.tune(model, place.task("sst2", is_mislabelled=True), job="third", steps=48)
    return Path(place.settings.store)


@pytest.fixture
def store(tuned: Path, place: JobPlace) -> PromptStore:
    """A copy of that store, for one test alone."""
    shutil.copytree(tuned, place.settings.store)
    return place.store()


def test_the_verdict_stands_in_the_log_with_every_figure(judge: ModelJudge, store: PromptStore, rows: Rows) -> None:
    promote_gated(store, gate_version(store, judge, "sst2:1", rows), reason="first")
    outcome = gate_version(store, judge, "sst2:3", rows)
    (said,) = (each.body for each in store.resolve("sst2:3").attestations if each.kind == "gate")
    assert said == {**outcome.verdict.to_json(), "alias": "production", "against": 1}
    assert said["verdict"] == "fail"
    assert (said["rows"], said["data_digest"]) == (len(rows), rows.digest)
    with pytest.raises(RefusedError, match="no passing gate"):
        promote_gated(store, outcome, reason="hope")


def test_a_gate_without_anything_in_production_has_its_own_rules(
    judge: ModelJudge, store: PromptStore, rows: Rows
) -> None:
    outcome = gate_version(store, judge, "sst2:1", rows, policy=GatePolicy(minimum=1.01))
    assert outcome.against is None
    assert [check.name for check in outcome.verdict.failures] == ["minimum"]


@pytest.fixture
def file(place: JobPlace) -> Path:
    """The task's file; its validation rows say of which language they are, which no fit reads."""
    file = place.task_file("sst2")
    data = place.folder / "sst2.validation.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(with_language(row)) + "\n" for row in rows))
    return file


def with_language(row: Row) -> Row:
    return {**row, "language": "en" if row["label"] == "yes" else "de"}


def test_every_value_of_a_column_is_judged_apart_on_the_rows_of_every_gate(
    place: JobPlace, model_folder: Path, store: PromptStore, rows: Rows, file: Path
) -> None:
    settings = place.settings.model_copy(update={"model": str(model_folder), "device": "cpu", "dtype": "float32"})
    policy = GatePolicy(slices=("language",), min_slice_accuracy=0.9, max_latency_ms=60_000, max_latency_ratio=1000)
    first = run_gate_job("sst2:1", settings=settings, store=store, task_file=str(file), policy=policy)
    store.promote("sst2:1", force=True, reason="to be compared with")
    worse = run_gate_job("sst2:3", settings=settings, store=store, task_file=str(file), policy=policy)
    judged_on = Rows.of([with_language(row) for row in rows]).digest
    assert first.verdict.data_digest == worse.verdict.data_digest == judged_on, "a column more moves no row"
    found = {check.name: check for check in worse.verdict.checks}
    slices = {value: found[f"no worse where language is {value}"] for value in ("de", "en")}
    labels = {"de": found["no worse on no"], "en": found["no worse on yes"]}
    assert {value: each.figures for value, each in slices.items()} == {
        value: each.figures for value, each in labels.items()
    }
    assert not all(each.holds for each in slices.values())
    assert found["accuracy where language is de"].figures["bound"] == 0.9
    assert found["time to first token"].figures["rows"] == 20
    ratio = found["time to first token against production"].figures
    assert ratio["value"] == ratio["candidate_ms"] / ratio["production_ms"]  # type: ignore[operator]
    assert "there is nothing to compare with" in [check.explanation for check in first.verdict.checks]
    (said,) = (each.body for each in store.resolve("sst2:3").attestations if each.kind == "gate")
    assert GateVerdict.from_json(said) == worse.verdict
    assert said["model"] == store.manifest(store.resolve("sst2:3").digest).fingerprint.weights_digest


def test_a_version_is_as_fast_as_itself(judge: ModelJudge, store: PromptStore, rows: Rows) -> None:
    store.promote("sst2:1", force=True, reason="first")
    outcome = gate_version(store, judge, "sst2:1", rows, policy=GatePolicy(max_latency_ratio=1.0))
    found = {check.name: check for check in outcome.verdict.checks}
    assert found["time to first token against production"].figures["value"] == 1.0
    assert outcome.has_passed


def test_a_column_that_the_data_lack_is_named_beside_those_they_have(
    place: JobPlace, store: PromptStore, rows: Rows, judge: ModelJudge, file: Path
) -> None:
    policy = GatePolicy(slices=("source",))
    with pytest.raises(InvalidInputError, match="field 'source' is missing; the row has label, language, text"):
        run_gate_job("sst2:1", settings=place.settings, store=store, task_file=str(file), policy=policy)
    with pytest.raises(InvalidInputError, match="by column 'source'; the columns are label, text"):
        gate_version(store, judge, "sst2:1", rows, policy=policy)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_what_happened(
    judge: ModelJudge, place: JobPlace, store: PromptStore, rows: Rows
) -> None:
    outcomes = [gate_version(store, judge, f"sst2:{number}", rows) for number in (1, 2)]
    ready, errors = Barrier(2), list[ConflictError]()

    def promote(outcome: GateOutcome) -> None:
        own = place.store()
        ready.wait()
        try:
            promote_gated(own, outcome, reason="race")
        except ConflictError as error:
            errors.append(error)

    threads = [Thread(target=promote, args=(outcome,)) for outcome in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = place.store().resolve("sst2").number
    print(f"conflicts: {len(errors)}, winner: version {winner}")
    (lost,) = errors
    assert f"sst2@production points at version {winner}, expected nothing; somebody moved it" in str(lost)


def test_a_verdict_is_found_in_the_log_while_all_that_it_rests_on_is_the_same(
    place: JobPlace, model_folder: Path, store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = place.settings.model_copy(update={"model": str(model_folder), "device": "cpu", "dtype": "float32"})
    file = place.task_file("sst2")
    asked: dict[str, Any] = {"settings": settings, "store": store, "task_file": str(file)}
    first = run_gate_job("sst2:1", **asked)
    with monkeypatch.context() as patch:
        patch.setattr(job_open_gate, "open_model", Mock(side_effect=AssertionError("the model is not needed")))
        assert run_gate_job("sst2:1", **asked) == first
    assert run_gate_job("sst2:1", **asked, policy=GatePolicy(max_drop=0.2)) != first
    promote_gated(store, run_gate_job("sst2:1", **asked), reason="first")
    assert run_gate_job("sst2:1", **asked).against == 1, "production moved, so there is something to compare with"
    with Path(place.folder / "sst2.validation.jsonl").open("a") as lines:
        lines.write('{"text": "a great film", "label": "yes"}\n')
    judged_again = run_gate_job("sst2:1", **asked)
    assert judged_again.verdict.data_digest != first.verdict.data_digest
    assert not run_gate_job("sst2:3", **asked).has_passed
    monkeypatch.setattr(job_open_gate, "open_model", Mock(side_effect=AssertionError("a refusal is judged anew")))
    with pytest.raises(AssertionError, match="judged anew"):
        run_gate_job("sst2:3", **asked)


def test_what_stands_on_another_base_model_is_not_compared_but_upgraded(
    store: PromptStore, place: JobPlace, model_folder: Path
) -> None:
    store.promote("sst2:1", force=True, reason="first")
    store.publish(sample_prompt(), store.manifest(store.resolve("sst2:1").digest).task, reason="of another base")
    settings = place.settings.model_copy(update={"model": str(model_folder)})
    with pytest.raises(RefusedError, match=r"sst2@production is sst2:1, of testing/tiny-llama.*upgrade-base"):
        run_gate_job("sst2:4", settings=settings, store=store, task_file=str(place.task_file("sst2")))


def test_a_promotion_is_confirmed_by_reading_it_as_a_server_would(
    judge: ModelJudge, store: PromptStore, rows: Rows
) -> None:
    outcome = gate_version(store, judge, "sst2:1", rows)
    promote_gated(store, outcome, reason="first")
    assert confirm_promotion(store, outcome).state == "confirmed"
    promote_gated(store, gate_version(store, judge, "sst2:2", rows, policy=GatePolicy(max_drop=1)), reason="second")
    assert confirm_promotion(store, outcome).state == "moved on"


def test_a_version_whose_bytes_are_gone_is_taken_back(
    judge: ModelJudge, place: JobPlace, store: PromptStore, rows: Rows
) -> None:
    promote_gated(store, gate_version(store, judge, "sst2:1", rows), reason="first")
    outcome = gate_version(store, judge, "sst2:2", rows, policy=GatePolicy(max_drop=1, alpha=0.0001))
    promote_gated(store, outcome, reason="second")
    for payload in Path(place.settings.store).rglob(f"{store.resolve('sst2:2').payload}.*"):
        payload.unlink()
    reader = open_prompt_store(place.settings.model_copy(update={"cache_bytes": 0}))
    confirmation = confirm_promotion(reader, outcome)
    assert confirmation.state == "broken"
    assert "sst2:2" in confirmation.explanation
    undo_promotion(reader, outcome, reason=confirmation.explanation)
    assert reader.resolve("sst2").number == 1


def test_taking_back_a_first_promotion_removes_the_alias(judge: ModelJudge, store: PromptStore, rows: Rows) -> None:
    outcome = gate_version(store, judge, "sst2:1", rows)
    promote_gated(store, outcome, reason="first")
    undo_promotion(store, outcome, reason="no good")
    assert "production" not in store.state.task("sst2").aliases
    with pytest.raises(ConflictError, match="nothing to undo"):
        undo_promotion(store, outcome, reason="again")


def test_an_answer_is_kept_and_a_no_moves_nothing(judge: ModelJudge, store: PromptStore, rows: Rows) -> None:
    outcome = gate_version(store, judge, "sst2:1", rows)
    with pytest.raises(RefusedError, match="Ada declined sst2:1"):
        promote_gated(store, outcome, reason="", answer=Answer(False, "Ada", "too soon"))
    promote_gated(store, outcome, reason="", answer=Answer(True, "Bob", "fine"))
    said = [dict(each.body) for each in store.resolve("sst2:1").attestations if each.kind == "approval"]
    assert [(each["approver"], each["approved"]) for each in said] == [("Ada", False), ("Bob", True)]


def test_a_version_of_another_model_is_not_judged(store: PromptStore, rows: Rows) -> None:
    with pytest.raises(IncompatibleModelError, match="sst2:1"):
        gate_version(store, ModelJudge(tiny_llama(seed=1)), PromptRef("sst2", number=1), rows)


def test_a_handful_of_rows_is_too_few_to_split() -> None:
    with pytest.raises(InvalidInputError, match="too few to pick a step"):
        split_validation(Rows.of([{"text": "a", "label": "yes"}]))


def test_late_news_of_a_version_asks_for_nothing() -> None:
    store = sample_store(MemoryObjectStore())
    for seed in range(2):
        store.publish(sample_prompt(seed), sample_task())
    assert why_no_news(store, "sst2:1", only_newest=True) == "sst2:2 was published since sst2:1"
    assert why_no_news(store, "sst2:1") is None
    assert why_no_news(store, "sst2:2", only_newest=True) is None
    store.promote("sst2:2", force=True, reason="test")
    assert why_no_news(store, "sst2:2") == "production is sst2:2 already"
    assert why_no_news(store, "sst2:2", "staging") is None
    store.publish(sample_prompt(9), sample_task())
    store.expire(["sst2:3"], reason="a mistake")
    assert why_no_news(store, "sst2:2", "staging", only_newest=True) is None, "a version that is gone overtakes nobody"


def test_a_folder_without_the_tasks_file_is_named(place: JobPlace, model_folder: Path) -> None:
    store = sample_store(MemoryObjectStore())
    store.publish(sample_prompt(), sample_task("other"))
    place.task_file("sst2")
    with pytest.raises(InvalidInputError, match=r"holds no task file of other"):
        run_gate_job("other:1", settings=place.settings, store=store, task_file=str(place.folder))
