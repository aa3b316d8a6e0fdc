"""Against the MLflow model registry: SQLite, its own client, artifacts on local disk and on the same S3 server."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.bench.contenders import MlflowRegistry, Promptstore
from infra.bench.measurement import Measurement, measured
from promptstore.settings import load_settings
from promptstore.testing.servers import seaweedfs_server
from promptstore.testing.store_samples import sample_prompt
from promptstore.tracking.mlflow_sink import connect

COMMAND = "python -m infra.bench speed --only registry"
PUBLISHED = 41
QUIET_MLFLOW = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "DO_NOT_TRACK": "true"}
PROMPTS = [sample_prompt(turn, num_virtual_tokens=20, hidden_size=576) for turn in range(PUBLISHED)]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Median seconds of each side, and the median of the ratios of turns taken one right after the other."""

    ours_s: float
    theirs_s: float
    ratio: float


def measurements() -> list[Measurement]:
    """Per place: how many times faster promptstore is, and the milliseconds of both."""
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="bench-registry-") as name, _environment(QUIET_MLFLOW):
        folder = Path(name)
        client = connect(f"sqlite:///{folder / 'mlflow.db'}")
        for place, store, artifacts, endpoint in _places(folder):
            settings = load_settings(
                store=store,
                s3_endpoint=endpoint,
                cache_dir=folder / place / "cache",
                state_dir=folder / place / "state",
            )
            theirs = MlflowRegistry(client, place, artifacts, folder / place / "mlflow", PROMPTS)
            rows += _compare(place, Promptstore(settings, PROMPTS), theirs)
    return rows


def _places(folder: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """Name, URL of the store, URL of MLflow's artifacts, S3 endpoint."""
    yield "disk", (folder / "store").as_uri(), (folder / "artifacts").as_uri(), None
    with seaweedfs_server() as server:
        environment = {**server.environment, "MLFLOW_S3_ENDPOINT_URL": server.endpoint}
        with _environment(environment):
            yield "S3", f"s3://{server.bucket}/store", f"s3://{server.bucket}/artifacts", server.endpoint


def _compare(place: str, ours: Promptstore, theirs: MlflowRegistry) -> list[Measurement]:
    def rows(what: str, pair: _Pair, target: str = "") -> list[Measurement]:
        name = f"{what}, {place}"
        return [
            measured(f"{name}: speed over MLflow", pair.ratio, "times", target=target, command=COMMAND),
            measured(f"{name}: promptstore", 1e3 * pair.ours_s, "ms", command=COMMAND),
            measured(f"{name}: MLflow", 1e3 * pair.theirs_s, "ms", command=COMMAND),
        ]

    published = _race(ours.publish_and_promote, theirs.publish_and_promote, PUBLISHED)
    return [
        *rows("publish and promote", published, ">= 1.5"),
        *rows("resolve", _race(ours.resolve, theirs.resolve, 201), ">= 50"),
        *rows("resolve after a poll", _race(ours.look_and_resolve, theirs.resolve, 101)),
        *rows("pull from a warm cache", _race(ours.pull, theirs.pull, 101), ">= 5"),
        *rows("pull without a cache", _race(ours.fetch, theirs.fetch, 41)),
    ]


def _race(ours: Callable[[int], object], theirs: Callable[[int], object], turns: int) -> _Pair:
    """Both in turns, each first every other time; the first turn warms up."""
    times: list[tuple[float, float]] = []
    for turn in range(turns):
        if turn % 2:
            times.append((_seconds(ours, turn), _seconds(theirs, turn)))
        else:
            their_s = _seconds(theirs, turn)
            times.append((_seconds(ours, turn), their_s))
    del times[0]
    return _Pair(
        ours_s=statistics.median(our_s for our_s, _ in times),
        theirs_s=statistics.median(their_s for _, their_s in times),
        ratio=statistics.median(their_s / our_s for our_s, their_s in times),
    )


def _seconds(act: Callable[[int], object], turn: int) -> float:
    started = time.perf_counter()
    act(turn)
    return time.perf_counter() - started


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """MLflow and boto3 read these from nowhere else."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
