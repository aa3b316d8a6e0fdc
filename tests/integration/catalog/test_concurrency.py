"""Many processes, killed processes and a killed database."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from promptstore.catalog import Catalog, Query
from promptstore.errors import PromptStoreError, StoreUnavailableError
from promptstore.objects.local import LocalObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.catalog_dump import dump_catalog
from promptstore.testing.served import SENTIMENT, LiveServer, live_server, publish_random
from promptstore.testing.servers import postgres_server
from promptstore.testing.store_samples import sample_prompt, sample_store, sample_task
from promptstore.testing.tiny_models import tiny_llama

NewDatabase = Callable[[], str]
FORK = multiprocessing.get_context("fork")
SYNCERS = 5
COMMITS = 60


def _publish(store: PromptStore, number: int) -> None:
    version = store.publish(
        sample_prompt(number), sample_task(f"task-{number % 7}"), metrics={"accuracy": number / 100}
    )
    if number % 3 == 0:
        store.promote(str(version), "staging", reason=f"number {number}")


def _write_commits(folder: Path) -> None:
    store = sample_store(LocalObjectStore(folder))
    for number in range(COMMITS):
        _publish(store, number)


def _sync_until(folder: Path, url: str, number: int, applied: "multiprocessing.SimpleQueue[int]") -> None:
    """Sync over and over; tells how many syncs of this process brought something."""
    store, catalog, brought = sample_store(LocalObjectStore(folder)), Catalog(url), 0
    while True:
        report = catalog.sync(store)
        brought += report.after > report.before
        if report.after >= number:
            applied.put(brought)
            return


def test_processes_that_sync_at_once_while_a_writer_commits_end_in_one_truth(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    folder, url, reference = tmp_path / "store", new_database(), new_database()
    expected = COMMITS + len(range(0, COMMITS, 3))
    sample_store(LocalObjectStore(folder))
    applied = FORK.SimpleQueue()
    syncers = [FORK.Process(target=_sync_until, args=(folder, url, expected, applied)) for _ in range(SYNCERS)]
    writer = FORK.Process(target=_write_commits, args=(folder,))
    for process in (*syncers, writer):
        process.start()
    for process in (*syncers, writer):
        process.join(120)
        assert process.exitcode == 0
    brought = sorted(applied.get() for _ in syncers)
    store = sample_store(LocalObjectStore(folder))
    assert store.state.number == expected
    Catalog(reference).sync(store)
    assert dump_catalog(url) == dump_catalog(reference)
    print(f"{expected} commits, syncs that brought something, by process: {brought}")
    assert sum(each > 0 for each in brought) > 1, "one process did it all: no race was seen"


def _rebuild_often(folder: Path, url: str) -> None:
    store = sample_store(LocalObjectStore(folder))
    for _ in range(15):
        Catalog(url).rebuild(store)


def test_people_who_read_during_a_rebuild_see_the_whole_catalogue(new_database: NewDatabase, tmp_path: Path) -> None:
    folder, url = tmp_path / "store", new_database()
    _write_commits(folder)
    catalog = Catalog(url)
    catalog.sync(sample_store(LocalObjectStore(folder)))
    whole = catalog.search(Query())
    rebuilder = FORK.Process(target=_rebuild_often, args=(folder, url))
    rebuilder.start()
    reads = 0
    while rebuilder.is_alive():
        assert catalog.search(Query()) == whole
        reads += 1
    rebuilder.join()
    assert rebuilder.exitcode == 0
    assert reads > 5, "nobody read during the rebuilds: the test shows nothing"


def test_a_sync_killed_at_any_moment_leaves_a_catalogue_that_the_next_one_completes(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    folder, url, reference = tmp_path / "store", new_database(), new_database()
    _write_commits(folder)
    store = sample_store(LocalObjectStore(folder))
    Catalog(reference).sync(store)
    whole, killed_at_work = dump_catalog(reference), 0
    for attempt in range(25):
        victim = FORK.Process(target=Catalog(url).rebuild, args=(store,))
        victim.start()
        time.sleep(0.004 * (attempt + 1))
        killed_at_work += victim.is_alive()
        victim.kill()
        victim.join()
        if Catalog(url).number():
            assert dump_catalog(url) == whole, "half a rebuild is visible"
    assert killed_at_work > 3, "the syncs were over before they were killed: the test shows nothing"
    Catalog(url).sync(store)
    assert dump_catalog(url) == whole


def _comes_to_answer(live: LiveServer, version: object) -> None:
    deadline = time.monotonic() + 30
    while True:
        answer = httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "x"}, timeout=30)
        if answer.headers.get("x-promptstore-version") == str(version):
            assert answer.status_code == 200, answer.text
            return
        assert time.monotonic() < deadline, answer.text


def test_while_the_database_is_dead_the_store_goes_on_and_a_rebuild_is_as_if_it_had_lived(tmp_path: Path) -> None:
    """And a server answers on, and follows."""
    store, model = sample_store(LocalObjectStore(tmp_path / "store")), tiny_llama()
    followed = sample_store(LocalObjectStore(tmp_path / "store"), actor="server")
    with postgres_server() as server, live_server(followed, model) as live:
        url = server.new_database()
        catalog = Catalog(url)
        for number in range(6):
            _publish(store, number)
        served = publish_random(store, model, SENTIMENT, seed=1)
        _comes_to_answer(live, served)
        catalog.sync(store)
        old = dump_catalog(url)

        server.kill()
        with pytest.raises(StoreUnavailableError, match="The store needs no catalogue"):
            catalog.sync(store)
        with pytest.raises(StoreUnavailableError):
            catalog.search(Query())
        with pytest.raises(StoreUnavailableError):
            catalog.rebuild(store)
        version = store.publish(sample_prompt(99), sample_task("task-0"))
        store.promote(str(version), "production", force=True, reason="the database is dead")
        assert store.pull("task-0@production", for_model=None).version.number == version.number
        _comes_to_answer(live, served)
        _comes_to_answer(live, publish_random(store, model, SENTIMENT, seed=2))

        server.start()
        assert dump_catalog(url) == old, "what was synced before the crash is lost"
        catalog.sync(store)
        synced = dump_catalog(url)
        catalog.rebuild(store)
        assert dump_catalog(url) == synced != old
        lost = server.new_database()
        Catalog(lost).sync(store)
        assert dump_catalog(lost) == synced


def test_a_wrong_password_and_a_missing_folder_are_told_without_the_password(tmp_path: Path) -> None:
    store = sample_store(LocalObjectStore(tmp_path / "store"))
    with postgres_server() as server:
        url = server.new_database().replace("not-a-secret", "hunter2")
        with pytest.raises(StoreUnavailableError) as caught:
            Catalog(url).sync(store)
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in Catalog(url).url
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(PromptStoreError, match="catalogue"):
        Catalog(f"sqlite:///{tmp_path}/file/catalog.db").sync(store)


def test_a_file_that_is_no_database_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(os.urandom(10_000))
    store = sample_store(LocalObjectStore(tmp_path / "store"))
    with pytest.raises(StoreUnavailableError, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'catalog.db'}").sync(store)
