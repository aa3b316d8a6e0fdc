"""A real Prefect server, a tiny model on disk, and flows run as people run them."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.server import PrefectServer, prefect_server
from promptstore.lm.frozen import FrozenModel
from promptstore.testing.flow_runner import FlowRunner
from promptstore.testing.job_place import JobPlace, write_tiny_model
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tracking.mlflow_sink import connect


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    return tiny_llama()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that need not be made again for every test."""
    place = JobPlace(tmp_path_factory.mktemp("empty"))
    connect(place.mlflow_uri).search_experiments()
    return place.folder / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, empty_mlflow: Path) -> JobPlace:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return JobPlace(tmp_path)


@pytest.fixture(scope="package")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect"), timeout_s=400) as server:
        yield server


@pytest.fixture
def runner(place: JobPlace, prefect: PrefectServer, model_folder: Path) -> FlowRunner:
    return FlowRunner(place.folder, {**place.environment(model_folder), **prefect.environment})


class PatientTransport(httpx.HTTPTransport):
    """Asks again while the server answers 503, as Prefect's own client does: SQLite is locked under load."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + 60
        while (answer := super().handle_request(request)).status_code == 503 and time.monotonic() < deadline:
            answer.close()
            time.sleep(0.5)
        return answer


@pytest.fixture
def api(prefect: PrefectServer) -> Iterator[httpx.Client]:
    """Prefect's own HTTP interface."""
    with httpx.Client(base_url=prefect.api_url, timeout=90, transport=PatientTransport()) as client:
        yield client
