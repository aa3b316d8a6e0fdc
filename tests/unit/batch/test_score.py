"""Scoring a file: in order, by one version, resumed wherever it was cut, in this process or through a server."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from promptstore.batch.answers import Answer, Answers, ScoredVersion
from promptstore.batch.local_answers import LocalAnswers
from promptstore.batch.open import run_score_job
from promptstore.batch.score import ScoreRequest, ScoreSummary, score
from promptstore.batch.score_file import score_file
from promptstore.batch.served_answers import ServedAnswers
from promptstore.client import Client, Retries
from promptstore.core.ref import PromptRef
from promptstore.errors import ConflictError, InvalidInputError, NotFoundError, NotServingError, PromptStoreError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.predictor import Predictor
from promptstore.settings import load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.served import ANSWER, SENTIMENT, LiveServer, live_server, publish_random, store_of
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tuning.rows import Row

ROWS = [
    {"id": f"r{at}", "text": f"{'a great film ' * (1 + at % 3)}{at}", "label": "pos" if at % 3 else "neg"}
    for at in range(23)
]
AT_ONCE = 4


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    return tiny_llama()


@pytest.fixture
def store(model: FrozenModel) -> PromptStore:
    return store_of(model, (SENTIMENT, ANSWER))


@pytest.fixture
def local(store: PromptStore, model: FrozenModel) -> LocalAnswers:
    return LocalAnswers(store, lambda: model)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., ScoreRequest]:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def request(output: str = "out.jsonl", **changed: Any) -> ScoreRequest:
        asked = {"ref": "sentiment", "source": str(source), "rows_at_once": AT_ONCE, **changed}
        return ScoreRequest(output=tmp_path / output, **asked)

    return request


def lines(request: ScoreRequest) -> list[dict[str, Any]]:
    return [json.loads(line) for line in request.output.read_text().splitlines()]


class Cut:
    """Answers until they were asked so often, and then stands for a process that is killed."""

    def __init__(self, inner: Answers, calls: int) -> None:
        self._inner = inner
        self._left = calls
        self.rows = 0

    def resolve(self, ref: PromptRef) -> ScoredVersion:
        return self._inner.resolve(ref)

    def answer(self, version: ScoredVersion, rows: Sequence[Row]) -> list[Answer]:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.rows += len(rows)
        return self._inner.answer(version, rows)


def test_every_row_is_answered_in_order_as_the_predictor_answers_it(
    model: FrozenModel, store: PromptStore, local: LocalAnswers, ask: Callable[..., ScoreRequest]
) -> None:
    request = ask(keep=("id",))
    summary = score(request, local)
    pulled = store.pull("sentiment", for_model=None)
    expected = Predictor(model, SENTIMENT, pulled.prompt).predict(ROWS)
    found = lines(request)
    assert [each["row"] for each in found] == list(range(1, len(ROWS) + 1))
    assert [each["kept"]["id"] for each in found] == [row["id"] for row in ROWS]
    assert [each["label"] for each in found] == [each.text for each in expected]
    for each, prediction in zip(found, expected, strict=True):
        assert each["probabilities"] == pytest.approx(dict(prediction.probabilities), abs=1e-4)
        assert each["version"] == "sentiment:1"
    right = sum(each["label"] == each["expected"] for each in found)
    assert (summary.rows, summary.labelled, summary.found) == (len(ROWS), len(ROWS), 0)
    assert summary.metric == "accuracy"
    assert summary.value == pytest.approx(right / len(ROWS))
    assert sum(summary.answers.values()) == len(ROWS)


def test_a_cut_run_repeated_gives_the_same_bytes_by_the_version_it_began_with(
    model: FrozenModel, store: PromptStore, local: LocalAnswers, ask: Callable[..., ScoreRequest]
) -> None:
    score(ask("whole.jsonl"), local)
    with pytest.raises(KeyboardInterrupt):
        score(ask(), Cut(local, calls=3))
    assert not ask().output.exists(), "a file under its own name is whole"
    publish_random(store, model, SENTIMENT, seed=9)
    assert store.resolve("sentiment").number == 2
    second = Cut(local, calls=100)
    summary = score(ask(), second)
    assert (summary.version, summary.found, second.rows) == ("sentiment:1", 12, len(ROWS) - 12)
    assert ask().output.read_bytes() == ask("whole.jsonl").output.read_bytes()


@pytest.mark.parametrize("torn", [b'{"row": 13, "lab', b"\0\0\0\n", b'{"row": 13}\n{"row": 14}\n'])
def test_what_a_kill_left_behind_the_last_full_set_is_taken_back(
    local: LocalAnswers, ask: Callable[..., ScoreRequest], torn: bytes
) -> None:
    score(ask("whole.jsonl"), local)
    with pytest.raises(KeyboardInterrupt):
        score(ask(), Cut(local, calls=3))
    with (ask().output.parent / "out.jsonl.partial").open("ab") as partial:
        partial.write(torn)
    assert score(ask(), local).found == 12
    assert ask().output.read_bytes() == ask("whole.jsonl").output.read_bytes()


def test_a_finished_run_repeated_answers_nothing_and_says_the_same(
    local: LocalAnswers, ask: Callable[..., ScoreRequest]
) -> None:
    first = score(ask(), local)
    again = score(ask(), Cut(local, calls=0))
    assert again.found == again.rows == len(ROWS)
    assert without_time(again) == {**without_time(first), "found": len(ROWS)}


def without_time(summary: ScoreSummary) -> dict[str, Any]:
    return {name: value for name, value in summary.to_json().items() if name != "seconds"}


@pytest.fixture
def live(store: PromptStore, model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store, model) as server:
        yield server


@pytest.fixture
def served(live: LiveServer) -> Iterator[ServedAnswers]:
    with Client(live.url) as client:
        yield ServedAnswers(client)


def test_a_server_gives_the_same_answers_by_one_version_through_a_promotion(
    model: FrozenModel,
    store: PromptStore,
    local: LocalAnswers,
    live: LiveServer,
    served: ServedAnswers,
    ask: Callable[..., ScoreRequest],
) -> None:
    score(ask("local.jsonl"), local)
    with pytest.raises(KeyboardInterrupt):
        score(ask(), Cut(served, calls=2))
    publish_random(store, model, SENTIMENT, seed=9)
    live.context.follower.poll()
    assert served.resolve(PromptRef.parse("sentiment")).number == 2
    summary = score(ask(), served)
    assert (summary.version, summary.digest) == ("sentiment:1", store.resolve("sentiment:1").digest)
    for each, expected in zip(lines(ask()), lines(ask("local.jsonl")), strict=True):
        assert each["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
        assert (each["row"], each["label"]) == (expected["row"], expected["label"])


def test_texts_are_generated_and_judged_alike_here_and_through_a_server(
    local: LocalAnswers, served: ServedAnswers, ask: Callable[..., ScoreRequest], tmp_path: Path
) -> None:
    source = tmp_path / "questions.csv"
    source.write_text("question,label\nwhat is good,yes\nwhat is bad,no\nwho was it,\n")
    here = score(ask("here.jsonl", ref="answer:1", source=str(source)), local)
    there = score(ask("there.jsonl", ref="answer:1", source=str(source)), served)
    assert lines(ask("here.jsonl")) == lines(ask("there.jsonl"))
    assert [each["row"] for each in lines(ask("here.jsonl"))] == [2, 3, 4]
    assert here.metric == there.metric == "exact_match"
    assert set(here.metrics) == {"exact_match", "token_f1"}


def test_a_row_that_is_refused_is_said_in_its_line_and_the_others_are_answered(
    served: ServedAnswers, ask: Callable[..., ScoreRequest], tmp_path: Path
) -> None:
    source = tmp_path / "long.jsonl"
    rows = [*ROWS[:5], {**ROWS[5], "text": "x" * 300_000}, *ROWS[6:9]]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = ask(source=str(source))
    summary = score(request, served)
    assert (summary.rows, summary.refused, summary.labelled) == (9, 1, 8)
    assert "1 could not be answered" in str(summary)
    assert set(lines(request)[5]) == {"row", "version", "error", "expected"}
    assert "300000 characters" in lines(request)[5]["error"]
    assert [each["row"] for each in lines(request) if "label" in each] == [1, 2, 3, 4, 5, 7, 8, 9]
    assert score(request, served) == replace(summary, found=9, seconds=ANY)


def test_what_refuses_every_row_ends_the_run(
    served: ServedAnswers, ask: Callable[..., ScoreRequest], tmp_path: Path
) -> None:
    source = tmp_path / "long.jsonl"
    source.write_text("".join(json.dumps({"text": "x" * 300_000 + str(at)}) + "\n" for at in range(3)))
    with pytest.raises(InvalidInputError, match="characters"):
        score(ask(source=str(source)), served)


def test_rows_without_labels_have_answers_and_no_metric(local: LocalAnswers, ask: Callable[..., ScoreRequest]) -> None:
    request = ask(has_labels=False)
    summary = score(request, local)
    assert (summary.labelled, summary.metric, summary.value, summary.metrics) == (0, None, None, {})
    assert all("expected" not in each for each in lines(request))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ref": "sentiment:1"}, "begun with another ref"),
        ({"keep": ("id",)}, "begun with other fields to keep"),
        ({"has_labels": False}, "another use of labels"),
    ],
)
def test_a_file_that_was_begun_with_another_request_is_refused(
    local: LocalAnswers, ask: Callable[..., ScoreRequest], changed: dict[str, Any], said: str
) -> None:
    score(ask(), local)
    with pytest.raises(InvalidInputError, match=said):
        score(ask(**changed), local)


def test_other_rows_under_the_same_output_are_refused(local: LocalAnswers, ask: Callable[..., ScoreRequest]) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(ask(), Cut(local, calls=1))
    source = Path(ask().source)
    source.write_text(source.read_text().replace("great", "bad", 1))
    with pytest.raises(InvalidInputError, match="begun with other rows"):
        score(ask(), local)


@pytest.mark.parametrize(
    ("text", "changed", "kind", "said"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', {}, InvalidInputError, "row 2: field 'text' is missing"),
        ('{"text": "a", "label": "x"}\n', {}, InvalidInputError, "row 1: label 'x' is not one of pos, neg"),
        ('{"text": "a"}\n', {"keep": ("id",)}, InvalidInputError, "no row has the field 'id'"),
        ("", {}, InvalidInputError, "has no rows"),
        ('{"text": "a"}\n', {"ref": "sentiment:7"}, NotFoundError, "7"),
        ('{"text": "a"}\n', {"ref": "sentiment:x"}, InvalidInputError, "expected task"),
        ('{"text": "a"}\n', {"source": "nowhere.csv"}, NotFoundError, "nowhere.csv"),
        ('{"text": "a"}\n', {"output": "none/out.jsonl"}, InvalidInputError, "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    local: LocalAnswers,
    ask: Callable[..., ScoreRequest],
    text: str,
    changed: dict[str, Any],
    kind: type[PromptStoreError],
    said: str,
) -> None:
    request = ask(**changed)
    Path(ask().source).write_text(text)
    with pytest.raises(kind, match=said):
        score(request, local)
    assert not list(request.output.parent.glob("*.score.json"))


def test_a_file_of_somebody_else_is_left_alone(local: LocalAnswers, ask: Callable[..., ScoreRequest]) -> None:
    ask().output.write_text("mine\n")
    with pytest.raises(InvalidInputError, match="no file of this command's"):
        score(ask(), local)
    assert ask().output.read_text() == "mine\n"


def test_two_at_once_do_not_write_one_file(local: LocalAnswers, ask: Callable[..., ScoreRequest]) -> None:
    with score_file(ask().output), pytest.raises(ConflictError, match="another process is writing"):
        score(ask(), local)


def test_a_server_that_is_not_there_is_said(ask: Callable[..., ScoreRequest]) -> None:
    with Client("http://127.0.0.1:9", retries=Retries(attempts=1)) as client, pytest.raises(NotServingError):
        score(ask(), ServedAnswers(client))


def test_a_job_with_a_url_needs_the_server_alone(
    live: LiveServer, ask: Callable[..., ScoreRequest], tmp_path: Path
) -> None:
    nothing = load_settings(store=str(tmp_path / "no-store"), model="no-model")
    summary = run_score_job(ask(), settings=nothing, url=live.url)
    assert (summary.version, summary.rows) == ("sentiment:1", len(ROWS))
