"""Alerts and dashboard: they ask for what the server really says, and fire when they should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from promptstore.serving.options import ServerOptions
from promptstore.testing.served import SENTIMENT, live_server, publish_random, store_of
from promptstore.testing.tiny_models import tiny_llama

INFRA = Path(__file__).parents[3] / "infra"
RULES: list[dict[str, Any]] = yaml.safe_load((INFRA / "prometheus" / "rules.yaml").read_text())["groups"][0]["rules"]
CASES: list[dict[str, Any]] = yaml.safe_load((INFRA / "prometheus" / "rules.test.yaml").read_text())["tests"]
DASHBOARD: dict[str, Any] = json.loads((INFRA / "grafana" / "promptstore.json").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
# Added by Prometheus, or by the panel itself.
OF_PROMETHEUS = {"job", "instance", "le", "pod", "namespace"}


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield from (each["expr"] for each in DASHBOARD["annotations"]["list"])
    yield from (each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")
    hpa = yaml.safe_load((INFRA / "kubernetes" / "overlays" / "gpu" / "autoscaling.yaml").read_text())
    yield from (each["pods"]["metric"]["name"] for each in hpa["spec"]["metrics"])


@pytest.fixture(scope="module")
def exported() -> list[Metric]:
    """What a server says after it answered, turned somebody away and was given a version that it cannot serve."""
    model = tiny_llama()
    store = store_of(model)
    with live_server(store, model, ServerOptions(poll_s=0.02)) as live, httpx.Client(base_url=live.url) as client:
        client.post("/v1/classify", json={"model": "sentiment", "input": "x"}).raise_for_status()
        body = {"model": "answer", "prompt": "x", "max_tokens": 2, "stream": True}
        client.post("/v1/completions", json=body).raise_for_status()
        client.post("/v1/classify", content=b"x" * (2 << 20))
        publish_random(store, tiny_llama(hidden_size=16), SENTIMENT, seed=1)
        client.post("/admin/refresh").raise_for_status()
        return list(text_string_to_metric_families(client.get("/metrics").text))


def test_rules_and_panels_name_only_metrics_that_the_server_exports(exported: list[Metric]) -> None:
    known = {family.name + suffix for family in exported for suffix in SUFFIXES.get(family.type, ())}
    asked = {name for each in expressions() for name in re.findall(r"\bpromptstore_[a-z_]+", each)}
    assert len(asked) > 12
    assert asked <= known


def test_rules_and_panels_name_only_labels_that_the_metrics_carry(exported: list[Metric]) -> None:
    labels: dict[str, set[str]] = {}
    for family in exported:
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    checked = set()
    for each in expressions():
        for name, braces in re.findall(r"\b(promptstore_[a-z_]+)\{([^}]*)\}", each):
            if name in labels:
                checked.add(name)
                assert set(re.findall(r"(\w+)\s*[=!]", braces)) - OF_PROMETHEUS <= labels[name], each
        for kept, name in re.findall(r"by \(([\w, ]+)\) \((?:\w+\()?(promptstore_[a-z_]+)", each):
            if name in labels:
                assert set(re.split(r",\s*", kept)) - OF_PROMETHEUS <= labels[name], each
    assert {"promptstore_version_refused", "promptstore_requests_refused_total"} <= set(labels)
    assert len(checked) > 10


def test_every_alert_is_shown_to_fire_and_to_keep_quiet() -> None:
    alerts = {rule["alert"] for rule in RULES}
    shown = [test for case in CASES for test in case["alert_rule_test"]]
    assert {test["alertname"] for test in shown if test["exp_alerts"]} == alerts
    assert {test["alertname"] for test in shown if not test["exp_alerts"]} == alerts


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: infra/install-test-servers.sh")
@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yaml"), ("test", "rules", "rules.test.yaml")])
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=INFRA / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def unknown(ours: Any, grafanas: Any, path: str = "") -> Iterator[str]:
    """Where our dashboard says something that Grafana's own model of one dropped or changed."""
    if isinstance(ours, dict) and isinstance(grafanas, dict):
        for name, value in ours.items():
            yield from unknown(value, grafanas.get(name), f"{path}/{name}")
    elif isinstance(ours, list) and isinstance(grafanas, list) and len(ours) == len(grafanas):
        for position, (one, other) in enumerate(zip(ours, grafanas, strict=True)):
            yield from unknown(one, other, f"{path}/{position}")
    elif ours != grafanas:
        yield path


def test_grafanas_own_schema_knows_every_word_of_the_dashboard() -> None:
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    # The title of a mark is Prometheus's field, not the dashboard's: the schema leaves it to the data source.
    assert set(unknown(DASHBOARD, read)) == {"/annotations/list/0/titleFormat"}


def test_every_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
