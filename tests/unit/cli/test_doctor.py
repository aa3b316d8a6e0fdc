"""The doctor finds what is wrong, says how to mend it, and believes no setting unseen."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from promptstore.cli.doctor import Finding, examine
from promptstore.objects.local import LocalObjectStore
from promptstore.settings import Settings, load_settings
from promptstore.testing.store_samples import sample_store


class Healthy(BaseHTTPRequestHandler):
    """Answers as MLflow and Prefect do when they are well, and to nobody else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/health", "/api/health"} else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Healthy) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def settings(folder: Path, **given: object) -> Settings:
    (folder / "model").mkdir(exist_ok=True)
    usual: dict[str, object] = {
        "store": str(folder / "store"),
        "state_dir": folder / "state",
        "cache_dir": folder / "cache",
        "model": str(folder / "model"),
        "device": "cpu",
        "mlflow_uri": "",
        "prefect_api_url": "",
    }
    return load_settings(**{**usual, **given})


def findings(folder: Path, **given: object) -> dict[str, Finding]:
    return {each.what: each for each in examine(settings(folder, **given))}


def test_where_everything_is_there_nothing_is_to_be_mended(tmp_path: Path, server: str) -> None:
    sample_store(LocalObjectStore(tmp_path / "store"))
    urls = {"mlflow_uri": f"http://{server}", "prefect_api_url": f"http://{server}/api"}
    found = findings(tmp_path, **urls)
    assert [each for each in found.values() if not each.is_well or each.fix] == []
    assert {"python", "torch", "prefect", "device", "store", "model", "MLflow", "Prefect"} <= found.keys()
    assert "cpu" in found["device"].found


@pytest.mark.parametrize(
    ("what", "given", "said", "fix"),
    [
        ("device", {"device": "cuda:99"}, "cuda:99", "PROMPTSTORE_DEVICE=cpu"),
        ("store", {}, "holds no store", "promptstore init"),
        ("store", {"store": "ftp://x"}, "unknown kind", "setting that is named"),
        ("store", {"store": "s3://b/p", "s3_endpoint": "http://127.0.0.1:1"}, "PROMPTSTORE_S3_ENDPOINT", "S3"),
        ("model", {"model": "asset:smollm2-135m"}, "", "promptstore assets fetch"),
        ("MLflow", {"mlflow_uri": "http://127.0.0.1:1"}, "refused", "PROMPTSTORE_MLFLOW_URI"),
        ("MLflow", {"mlflow_uri": "sqlite:////no/such/folder/mlflow.db"}, "no folder", "mkdir -p /no/such/folder"),
        ("Prefect", {"prefect_api_url": "http://127.0.0.1:1/api"}, "refused", "PREFECT_API_URL"),
    ],
)
def test_what_is_wrong_is_found_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, given: dict[str, object], said: str, fix: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    found = findings(tmp_path, **given)[what]
    assert not found.is_well
    assert said in found.found
    assert fix in found.fix


def test_a_damaged_store_is_not_made_anew_but_verified(tmp_path: Path) -> None:
    objects = LocalObjectStore(tmp_path / "store")
    sample_store(objects)
    objects.put("store.json", b"{}")
    assert findings(tmp_path)["store"].fix.endswith("promptstore verify")


def test_a_server_that_answers_something_else_is_not_well_and_no_password_is_shown(tmp_path: Path, server: str) -> None:
    found = findings(tmp_path, mlflow_uri=f"http://ada:secret@{server}/elsewhere")["MLflow"]
    assert not found.is_well
    assert "404" in found.found
    assert "secret" not in found.found + found.fix
