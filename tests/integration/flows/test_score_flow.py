"""Scoring, as a process against a real Prefect server."""

import json

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import JobPlace
from promptstore.testing.served import SENTIMENT, publish_random

pytestmark = pytest.mark.slow


def test_score_answers_every_row_and_shows_the_metric_on_prefects_page(
    model: FrozenModel, place: JobPlace, runner: FlowRunner, api: httpx.Client
) -> None:
    publish_random(place.store(), model, SENTIMENT, seed=1)
    rows = place.folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"film {at}", "label": "pos"}) + "\n" for at in range(40)))
    output = place.folder / "answers.jsonl"
    ended = runner.run("score", ref="sentiment", source=str(rows), output=str(output), rows_at_once=16)
    assert ended.code == 0, ended.error
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 41))
    accuracy = sum(line["label"] == "pos" for line in lines) / 40
    assert (ended.result["version"], ended.result["value"]) == ("sentiment:1", pytest.approx(accuracy))
    asked = {"artifacts": {"key": {"any_": ["score"]}}, "sort": "CREATED_DESC"}
    table = json.loads(api.post("/artifacts/filter", json=asked).raise_for_status().json()[0]["data"])
    assert {"what": "accuracy", "figure": f"{accuracy:.4f}"} in table
