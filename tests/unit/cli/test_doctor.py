"""The doctor finds what is wrong, says how to mend it, and believes no setting unseen."""

import multiprocessing
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from promptstore.cli.doctor import Finding, examine
from promptstore.objects.local import LocalObjectStore
from promptstore.settings import Settings, load_settings
from promptstore.testing.store_samples import sample_store

NOBODY = 65534


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
    (folder / "model" / "config.json").write_text("{}")
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


def install(folder: Path, package: str, version: str, *requirements: str) -> None:
    """Puts the record of an installed package into `folder`."""
    (folder / f"{package}-{version}.dist-info").mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {package}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requirements]
    (folder / f"{package}-{version}.dist-info" / "METADATA").write_text("\n".join(lines))


def test_a_package_that_promptstore_does_not_work_with_is_replaced_by_one_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "fastapi", "99.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = findings(tmp_path)["fastapi"]
    assert not found.is_well
    assert found.found == "99.0, promptstore needs <0.155,>=0.139"
    assert found.fix == "pip install 'fastapi<0.155,>=0.139'"


def test_requirements_count_where_their_marker_and_extra_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path,
        "promptstore",
        "0.1.0",
        "torch<99",
        'torch>=1; extra == "lm"',
        'torch<0.1; extra == "other"',
        'transformers<0.1; python_version < "3" and extra == "lm"',
    )
    install(tmp_path, "torch", "2.0.1+cpu")
    install(tmp_path, "transformers", "5.5")
    monkeypatch.syspath_prepend(tmp_path)
    found = findings(tmp_path)
    assert [(found[name].is_well, found[name].found) for name in ("torch", "transformers")] == [
        (True, "2.0.1+cpu"),
        (True, "5.5"),
    ]


def test_a_package_that_is_not_installed_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, "promptstore", "0.1.0")
    install(tmp_path, "prefect", "3.4")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    found = findings(tmp_path)
    assert (found["torch"].found, found["torch"].fix) == ("not installed", "pip install 'promptstore[lm]'")
    assert "3.4, which cannot be judged" in found["prefect"].found
    assert found["prefect"].fix == "pip install 'promptstore[flows]'"


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = findings(tmp_path, model=str(tmp_path / "empty"))["model"]
    assert not found.is_well
    assert f"{tmp_path}/empty holds no config.json; name the folder that has it" in found.found


@pytest.mark.parametrize("revision", ["", "@main", "@" + "c" * 40])
def test_a_model_of_the_hub_is_well_whether_it_is_here_already_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--tiny--llama"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c" * 40)
    states = {
        "README.md": "fetched from the model hub when first used",
        "config.json": "fetched from the model hub when first used",
        "model.safetensors": "in the hub client's cache",
    }
    for file, state in states.items():
        (snapshot / file).write_bytes(b"")
        found = findings(tmp_path, model=f"hf:tiny/llama{revision}")["model"]
        assert (found.is_well, found.found) == (True, f"hf:tiny/llama{revision}: {state}")


def test_what_is_no_name_of_a_repository_is_not_well(tmp_path: Path) -> None:
    found = findings(tmp_path, model="hf:not a name")["model"]
    assert not found.is_well
    assert "write hf:<owner>/<model>" in found.found


def test_a_database_of_mlflow_is_opened_but_not_made(tmp_path: Path) -> None:
    path = tmp_path / "a b?" / "mlflow.db"
    path.parent.mkdir()
    uri = f"sqlite:///{tmp_path}/a%20b%3F/mlflow.db"
    assert findings(tmp_path, mlflow_uri=uri)["MLflow"].is_well
    assert not path.exists()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (id)")
    assert findings(tmp_path, mlflow_uri=uri)["MLflow"].is_well
    path.write_bytes(b"a picture")
    found = findings(tmp_path, mlflow_uri=uri)["MLflow"]
    assert not found.is_well
    assert "file is not a database" in found.found
    assert found.fix == f"move {path} away, or correct PROMPTSTORE_MLFLOW_URI"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("folder_mode", "named"), [(0o555, "mlflow"), (0o777, "mlflow/mlflow.db")])
def test_a_database_that_mlflow_could_not_write_is_not_well(open_folder: Path, folder_mode: int, named: str) -> None:
    (open_folder / "mlflow").mkdir()
    (open_folder / "mlflow").chmod(folder_mode)
    (open_folder / "mlflow" / "mlflow.db").touch(mode=0o444)
    given = settings(open_folder, mlflow_uri=f"sqlite:///{open_folder}/mlflow/mlflow.db")

    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        (found,) = [each for each in examine(given) if each.what == "MLflow"]
        assert not found.is_well
        assert f"{open_folder}/{named} cannot be written" in found.found
        assert "permission" in found.fix

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0
