"""`promptstore catalog search`: each option narrows what is found."""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from promptstore.cli.app import app
from promptstore.core.manifest import Provenance
from promptstore.core.prompt import SoftPrompt
from promptstore.objects.local import LocalObjectStore
from promptstore.testing.store_samples import (
    sample_fingerprint,
    sample_prompt,
    sample_store,
    sample_task,
    ticking_clock,
)

ONE, TWO, THREE = "sst2:1", "sst2:2", "trec_6:1"


@pytest.fixture(scope="module", autouse=True)
def _catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A catalogue in SQLite of three versions, published on the third, fourth and fifth of January 2026."""
    folder = tmp_path_factory.mktemp("catalogue")
    store = sample_store(LocalObjectStore(folder / "store"), clock=ticking_clock(timedelta(days=1)))
    for seed, (task, model, actor, accuracy) in enumerate(
        [("sst2", "tiny", "ann", 0.8), ("sst2", "tiny", "bob", 0.9), ("trec_6", "small", "ann", 0.5)]
    ):
        store.publish(
            SoftPrompt(sample_prompt(seed).embeddings, sample_fingerprint(model=model)),
            sample_task(task),
            provenance=Provenance(data_digest=f"{seed}" * 64),
            metrics={"accuracy": accuracy, "loss": 1 - accuracy},
            actor=actor,
        )
    store.promote(TWO, "staging")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROMPTSTORE_CATALOG", raising=False)
        patch.setenv("PROMPTSTORE_STORE", str(folder / "store"))
        patch.setenv("PROMPTSTORE_STATE_DIR", str(folder / "state"))
        assert CliRunner().invoke(app, ["catalog", "sync"]).exit_code == 0
        yield


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [THREE, TWO, ONE]),
        (["--task", "sst2"], [TWO, ONE]),
        (["--task", "trec_*"], [THREE]),
        (["--metric", "accuracy>=0.8"], [TWO, ONE]),
        (["--metric", "accuracy<=0.8"], [THREE, ONE]),
        (["--metric", "accuracy>=0.6", "--metric", "loss >= 0.15"], [ONE]),
        (["--base-model", "small"], [THREE]),
        (["--base-model", "t*"], [TWO, ONE]),
        (["--base-model", sample_fingerprint(model="small").weights_digest[:8]], [THREE]),
        (["--author", "bob"], [TWO]),
        (["--since", "2026-01-04T00:00:00Z"], [THREE, TWO]),
        (["--until", "2026-01-04T00:00:00Z"], [ONE]),
        (["--since", "2026-01-04T01:00:00+01:00", "--until", "2026-01-05T00:00:00Z"], [TWO]),
        (["--data-digest", "111111"], [TWO]),
        (["--alias", "staging"], [TWO]),
        (["--limit", "1"], [THREE]),
        (["--author", "ann", "--task", "sst2"], [ONE]),
    ],
    ids=lambda given: " ".join(given).replace("--", "") or "all",
)
def test_each_option_of_a_search_narrows_what_is_found(options: list[str], expected: list[str]) -> None:
    done = CliRunner().invoke(app, ["catalog", "search", *options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert [json.loads(line)["version"] for line in done.stdout.splitlines()] == expected
