"""MLflow's registry shows what the log says, and can ask for a change but never make one."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from promptstore.core.manifest import Provenance
from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.loopback import free_port
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.job_place import JobPlace, write_tiny_model
from promptstore.tracking.mlflow_sink import connect
from promptstore.tracking.registry import AliasRequest, RegistryMirror, open_mirror
from promptstore.tuning.evaluate import evaluate
from promptstore.tuning.task_file import read_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return open_model(str(folder), cache_dir=tmp_path_factory.mktemp("cache"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that need not be made again for every test."""
    place = JobPlace(tmp_path_factory.mktemp("empty"))
    connect(place.mlflow_uri).search_experiments()
    return place.folder / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, empty_mlflow: Path) -> JobPlace:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return JobPlace(tmp_path)


@pytest.fixture
def store(place: JobPlace, model: FrozenModel) -> PromptStore:
    """Three versions; production is the second."""
    store, task = place.store(), place.task("sst2")
    for seed in range(3):
        drawn = np.random.default_rng(seed).normal(size=(4, model.hidden_size)).astype(np.float32)
        store.publish(SoftPrompt(drawn, model.fingerprint), task, metrics={"accuracy": 0.5 + seed / 10})
    store.promote("sst2:2", force=True, reason="test")
    return store


@pytest.fixture
def mirror(place: JobPlace, folder: Path) -> RegistryMirror:
    return open_mirror(place.mlflow_uri, base_model=str(folder))


@pytest.fixture
def client(place: JobPlace) -> Any:
    return connect(place.mlflow_uri)


def alias_of(client: Any, name: str = "sst2", alias: str = "production") -> str | None:
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else str(found)


def test_every_version_and_alias_appears_and_a_second_pass_changes_nothing(
    store: PromptStore, mirror: RegistryMirror, client: Any
) -> None:
    report = mirror.sync(store)
    assert report.registered == ["sst2:1", "sst2:2", "sst2:3"]
    assert alias_of(client) == "2"
    found = {each.version: each.tags for each in client.search_model_versions("name='sst2'")}
    assert {str(number): tags["version"] for number, tags in found.items()} == {
        "1": "sst2:1",
        "2": "sst2:2",
        "3": "sst2:3",
    }
    assert found[max(found)]["digest"] == store.resolve("sst2:3").digest
    again = mirror.sync(store)
    assert (again.registered, again.moved, again.requests) == ([], [], [])


def test_a_promotion_in_the_log_moves_the_alias_in_mlflow(
    store: PromptStore, mirror: RegistryMirror, client: Any
) -> None:
    mirror.sync(store)
    store.promote("sst2:3", force=True, reason="test")
    store.promote("sst2:1", "staging")
    report = mirror.sync(store)
    assert report.moved == ["sst2@production", "sst2@staging"]
    assert not report.requests
    assert (alias_of(client), alias_of(client, alias="staging")) == ("3", "1")
    store.delete_alias("sst2", "staging")
    assert mirror.sync(store).moved == ["sst2@staging"]
    assert alias_of(client, alias="staging") is None


def test_an_alias_set_in_mlflow_is_set_back_and_becomes_a_request(
    store: PromptStore, mirror: RegistryMirror, client: Any
) -> None:
    mirror.sync(store)
    client.set_registered_model_alias("sst2", "production", "3")
    report = mirror.sync(store)
    assert report.requests == [AliasRequest(PromptRef("sst2", number=3), "production")]
    assert alias_of(client) == "2"
    assert store.refresh().task("sst2").aliases["production"] == 2
    assert not mirror.sync(store).requests, "it is asked for once"


def test_an_alias_removed_in_mlflow_comes_back(store: PromptStore, mirror: RegistryMirror, client: Any) -> None:
    mirror.sync(store)
    client.delete_registered_model_alias("sst2", "production")
    report = mirror.sync(store)
    assert (report.moved, report.requests) == (["sst2@production"], [])
    assert alias_of(client) == "2"


def test_a_first_production_asked_for_in_mlflow_is_a_request_too(
    store: PromptStore, mirror: RegistryMirror, client: Any
) -> None:
    store.delete_alias("sst2", "production")
    mirror.sync(store)
    client.set_registered_model_alias("sst2", "production", "1")
    client.set_registered_model_alias("sst2", "somebodys-own", "1")
    assert mirror.sync(store).requests == [AliasRequest(PromptRef("sst2", number=1), "production")]
    assert alias_of(client) is None
    assert alias_of(client, alias="somebodys-own") == "1", "what the log does not know is left alone"


def test_aliases_that_mlflow_forbids_are_said(store: PromptStore, mirror: RegistryMirror) -> None:
    store.promote("sst2:1", "latest")
    store.promote("sst2:1", "eu.west")
    assert mirror.sync(store).skipped == ["sst2@eu.west", "sst2@latest"]


def test_a_version_hangs_on_the_run_that_made_it(
    store: PromptStore, mirror: RegistryMirror, client: Any, place: JobPlace, model: FrozenModel
) -> None:
    run = client.create_run(client.create_experiment("made", artifact_location=(place.folder / "a").as_uri()))
    prompt = SoftPrompt(np.ones((2, model.hidden_size), dtype=np.float32), model.fingerprint)
    task = replace(place.task("sst2"), name="made")
    store.publish(prompt, task, provenance=Provenance(mlflow_run=run.info.run_id))
    store.publish(prompt, task, provenance=Provenance(mlflow_run="0" * 32))
    mirror.sync(store, ["made"])
    runs = {each.tags["version"]: each.run_id for each in client.search_model_versions("name='made'")}
    assert runs["made:1"] == run.info.run_id
    assert client.get_run(runs["made:2"]).data.tags["role"] == "registry"


def test_an_expired_version_is_not_registered(store: PromptStore, mirror: RegistryMirror) -> None:
    store.expire(["sst2:1"])
    assert mirror.sync(store).registered == ["sst2:2", "sst2:3"]


PREDICT = """
import json, mlflow
found = mlflow.pyfunc.load_model("models:/sst2@production")
print(json.dumps([found.predict([{"text": "a great film"}, {"text": "it was bad"}]), found.metadata.metadata]))
"""


def test_mlflow_loads_the_alias_and_answers_as_our_own_evaluation(
    store: PromptStore, mirror: RegistryMirror, place: JobPlace, folder: Path, model: FrozenModel
) -> None:
    mirror.sync(store)
    environment = {**os.environ, **place.environment(folder), "MLFLOW_TRACKING_URI": place.mlflow_uri}
    done = subprocess.run([sys.executable, "-c", PREDICT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, metadata = json.loads(done.stdout.strip().splitlines()[-1])
    rows = [{"text": "a great film", "label": "yes"}, {"text": "it was bad", "label": "no"}]
    pulled = store.pull("sst2", for_model=model.fingerprint)
    expected = evaluate(model, read_task(place.folder / "sst2.toml"), pulled.prompt, rows).predictions
    assert tuple(each["label"] for each in answers) == expected
    assert all(abs(sum(each["probabilities"].values()) - 1) < 1e-6 for each in answers)
    assert metadata["digest"] == pulled.version.digest


@pytest.fixture
def served(store: PromptStore, mirror: RegistryMirror, place: JobPlace, folder: Path) -> Iterator[str]:
    mirror.sync(store)
    port = free_port()
    environment = {**os.environ, **place.environment(folder), "MLFLOW_TRACKING_URI": place.mlflow_uri}
    arguments = ["-m", "mlflow", "models", "serve", "-m", "models:/sst2@production", "-p", str(port)]
    with (place.folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments, "--env-manager", "local"],
            env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_mlflow_models_serve_works(served: str, place: JobPlace) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{served}/ping", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    answer = httpx.post(f"{served}/invocations", json={"dataframe_records": [{"text": "a great film"}]}, timeout=60)
    assert answer.status_code == 200, (place.folder / "serve.log").read_text()[-3000:]
    (prediction,) = answer.json()["predictions"]
    assert prediction["label"] in {"yes", "no"}
