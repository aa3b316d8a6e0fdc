"""infra/docs/backup.md, performed: its commands are run as they stand there, and the store comes back."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from promptstore.catalog.catalog import Catalog
from promptstore.core.state import StoreState
from promptstore.objects.local import LocalObjectStore
from promptstore.store.copy import copy_store
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.catalog_dump import dump_catalog
from promptstore.testing.served import SENTIMENT, TOPIC, publish_random
from promptstore.testing.servers import PostgresServer, postgres_programs
from promptstore.testing.tiny_models import tiny_llama

PAGE = (Path(__file__).parents[2] / "infra" / "docs" / "backup.md").read_text(encoding="utf-8")
STEPS = dict(re.findall(r"^## (.+?)\n.*?^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Place:
    """A machine with a store, and somewhere to copy it to."""

    folder: Path

    @property
    def store_folder(self) -> Path:
        return self.folder / "store"

    def store(self) -> PromptStore:
        objects = LocalObjectStore(self.store_folder)
        return PromptStore(Ledger.open(objects, actor="tester"), objects)

    def run(self, script: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PROMPTSTORE_STORE": self.store_folder.as_uri(),
            "PROMPTSTORE_STATE_DIR": str(self.folder / "state"),
            "PROMPTSTORE_CACHE_DIR": str(self.folder / "cache"),
            "PROMPTSTORE_CATALOG": self.catalog,
            "DUMPS": str(self.folder),
            "BACKUP": (self.folder / "backup").as_uri(),
            **more,
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def perform(self, step: str, **more: str) -> str:
        done = self.run(STEPS[step], **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def catalog(self) -> str:
        return f"sqlite:///{self.folder / 'catalog.db'}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """With two tasks, promotions, a rollback and an expired version."""
    model = tiny_llama()
    objects = LocalObjectStore(tmp_path / "store")
    store = PromptStore(Ledger.create(objects, actor="tester"), objects)
    publish_random(store, model, TOPIC, seed=1)
    for seed in (2, 3, 4):
        publish_random(store, model, SENTIMENT, seed=seed)
    store.rollback("sentiment", reason="worse on Mondays")
    store.expire(["sentiment:1"], reason="old")
    return Place(tmp_path)


@pytest.mark.slow
def test_a_lost_store_comes_back_with_its_aliases_its_history_and_its_catalogue(place: Place) -> None:
    before, history = place.store().state, place.store().history()
    Catalog(place.catalog).rebuild(place.store())
    catalogue = dump_catalog(place.catalog)
    place.perform("Back up")

    place.store().promote("sentiment:3", reason="after the backup", force=True)
    assert place.run("promptstore list").returncode == 0  # this machine has seen it
    shutil.rmtree(place.store_folder)
    (place.folder / "catalog.db").unlink()

    refused = place.run(STEPS["Restore"])
    assert refused.returncode != 0
    assert f"ends at commit {before.number}, but commit {before.number + 1} was seen" in flat(refused.stderr)
    place.perform("Accept what is lost")
    place.perform("Restore")
    assert "sentiment" in place.perform("Check")

    after = place.store()
    assert state_of(after.state) == state_of(before)
    assert after.history() == history
    assert dump_catalog(place.catalog) == catalogue
    model = tiny_llama()
    assert after.pull("sentiment", for_model=model.fingerprint).version.number == 2
    publish_random(after, model, SENTIMENT, seed=5)
    assert copy_store(after.ledger, LocalObjectStore(place.folder / "backup")).commits == 2


def test_the_databases_come_back_with_every_row(place: Place, postgres: PostgresServer) -> None:
    at = urlsplit(postgres.new_database())
    server = {
        "PATH": f"{postgres_programs()}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": str(at.hostname),
        "PGPORT": str(at.port),
        "PGUSER": str(at.username),
        "PGPASSWORD": str(at.password),
    }
    rows = "for name in mlflow prefect; do psql -qAt -c 'SELECT sum(id), max(name) FROM runs' $name; done"
    made = place.run(
        "for name in mlflow prefect; do createdb $name; psql -q -c "
        "\"CREATE TABLE runs AS SELECT id, '$name ' || id AS name FROM generate_series(1, 1000) id\" $name; done",
        **server,
    )
    assert made.returncode == 0, made.stderr
    before = place.run(rows, **server).stdout
    assert before.splitlines() == ["500500|mlflow 999", "500500|prefect 999"]
    try:
        place.perform("Back up the databases", **server)
        assert place.run("dropdb mlflow; dropdb prefect", **server).returncode == 0
        place.perform("Restore the databases", **server)
        assert place.run(rows, **server).stdout == before
    finally:
        place.run("dropdb --if-exists mlflow; dropdb --if-exists prefect", **server)


def test_every_step_of_the_page_is_performed_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(STEPS) == PAGE.count("```bash") == 6
    assert all(f'"{step}"' in source for step in STEPS)


def state_of(state: StoreState) -> object:
    return state.store_id, state.number, state.digest, state.tasks


def flat(text: str) -> str:
    return " ".join(text.split())
