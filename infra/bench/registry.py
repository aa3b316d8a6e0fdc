"""Against the MLflow model registry: SQLite, its own client, artifacts on local disk and on the same S3 server."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from infra.bench.measurement import Measurement, measured
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.cache import PromptCache
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.servers import seaweedfs_server
from promptstore.testing.store_samples import sample_prompt, sample_task

COMMAND = "python -m infra.bench speed --only registry"
ROUNDS = 40
STEPS = ("publish and promote", "resolve", "pull")
TARGETS = {"publish and promote": ">= 1.5", "resolve": ">= 50", "pull": ">= 5"}


class Ours:
    """A prompt store whose every write is durable when it returns."""

    def __init__(self, objects: ObjectStore, cache: Path) -> None:
        self.prompts = PromptStore(Ledger.create(objects, actor="bench"), objects, cache=PromptCache(cache, 1 << 30))

    def publish_and_promote(self, turn: int) -> None:
        version = self.prompts.publish(_prompt(turn), sample_task(), metrics={"accuracy": 0.9})
        self.prompts.promote(str(version), "staging", reason="bench")

    def resolve(self, _turn: int) -> None:
        self.prompts.resolve("sst2@staging")

    def pull(self, _turn: int) -> None:
        """From the warm cache, every byte checked against its digest."""
        self.prompts.pull("sst2@staging", for_model=None)


class MLflow:
    """The same with MLflow's own client: artifact, model version, alias."""

    def __init__(self, database: Path, artifacts: str) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient(tracking_uri=f"sqlite:///{database}", registry_uri=f"sqlite:///{database}")
        experiment = self.client.create_experiment("bench", artifact_location=artifacts)
        self.run = self.client.create_run(experiment)
        self.client.create_registered_model("sst2")
        self.file = database.parent / "prompt.npy"

    def publish_and_promote(self, turn: int) -> None:
        np.save(self.file, _prompt(turn).embeddings)
        self.client.log_artifact(self.run.info.run_id, str(self.file), f"v{turn}")
        source = f"{self.run.info.artifact_uri}/v{turn}"
        version = self.client.create_model_version("sst2", source, self.run.info.run_id, tags={"accuracy": "0.9"})
        self.client.set_registered_model_alias("sst2", "staging", version.version)

    def resolve(self, _turn: int) -> None:
        self.client.get_model_version_by_alias("sst2", "staging")

    def pull(self, _turn: int) -> None:
        import mlflow

        version = self.client.get_model_version_by_alias("sst2", "staging")
        path = mlflow.artifacts.download_artifacts(f"{version.source}/prompt.npy")
        np.load(path)


def measurements() -> list[Measurement]:
    """Ratios of medians, the two registries taking turns in one run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    rows = []
    for place, ours, mlflow in _rivals():
        for step in STEPS:
            our_s, their_s = _medians(ours, mlflow, step.replace(" ", "_"))
            rows += [
                measured(f"{step}, {place}: promptstore", 1e3 * our_s, "ms", command=COMMAND),
                measured(f"{step}, {place}: MLflow", 1e3 * their_s, "ms", command=COMMAND),
                measured(f"{step}, {place}", their_s / our_s, "times faster", target=TARGETS[step], command=COMMAND),
            ]
    return rows


def _rivals() -> Iterator[tuple[str, Ours, MLflow]]:
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        folder = Path(name)
        (folder / "mlflow").mkdir()
        artifacts = (folder / "mlflow" / "artifacts").as_uri()
        with _tracking(folder / "mlflow" / "mlflow.db"):
            ours = Ours(LocalObjectStore(folder / "store"), folder / "cache")
            yield "local disk", ours, MLflow(folder / "mlflow" / "mlflow.db", artifacts)
    with tempfile.TemporaryDirectory(prefix="registry-") as name, seaweedfs_server() as server:
        folder = Path(name)
        os.environ.update({**server.environment, "MLFLOW_S3_ENDPOINT_URL": server.endpoint})
        objects = S3ObjectStore(server.bucket, "store", S3Options(endpoint=server.endpoint))
        with _tracking(folder / "mlflow.db"):
            yield "S3", Ours(objects, folder / "cache"), MLflow(folder / "mlflow.db", f"s3://{server.bucket}/mlflow")


@contextmanager
def _tracking(database: Path) -> Iterator[None]:
    """MLflow's fluent helpers look at the process-wide URI."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{database}")
    yield


def _medians(ours: Ours, mlflow: MLflow, step: str) -> tuple[float, float]:
    """Seconds of one step on each side, measured in turns after one turn to warm up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for rival, times in zip((ours, mlflow), taken, strict=True):
            act: Callable[[int], None] = getattr(rival, step)
            start = time.perf_counter()
            act(turn)
            times.append(time.perf_counter() - start)
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def _prompt(turn: int) -> Any:
    return sample_prompt(turn, num_virtual_tokens=20, hidden_size=576)
