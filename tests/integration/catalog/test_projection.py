"""That the tables say what the log says, on both databases, however they came to."""

import random
from collections.abc import Callable
from datetime import datetime

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text, update

from promptstore.catalog import Catalog, MetricRange, Query, SyncReport
from promptstore.catalog.database import Database
from promptstore.catalog.models import CatalogTable, CursorRow
from promptstore.catalog.schema import VERSION_TABLE
from promptstore.core.manifest import Provenance
from promptstore.core.ref import PromptRef
from promptstore.errors import CorruptError, InvalidInputError, NotFoundError, UntrustedError
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.catalog_dump import dump_catalog
from promptstore.testing.store_samples import (
    sample_fingerprint,
    sample_prompt,
    sample_store,
    sample_task,
    ticking_clock,
)

NewDatabase = Callable[[], str]
PASS = {"verdict": "pass"}


@pytest.fixture
def objects() -> MemoryObjectStore:
    return MemoryObjectStore()


@pytest.fixture
def store(objects: MemoryObjectStore) -> PromptStore:
    return sample_store(objects, clock=ticking_clock())


def _publish(store: PromptStore, task: str = "sst2", seed: int = 0, accuracy: float = 0.9, **named: str) -> str:
    data_digest = named.get("data_digest", "d" * 64)
    version = store.publish(
        sample_prompt(seed),
        sample_task(task),
        provenance=Provenance(mlflow_run=f"run-{seed}", data_digest=data_digest),
        metrics={"accuracy": accuracy, "loss": 1 - accuracy},
        reason=f"nightly {seed}",
        actor=named.get("actor", "ann"),
    )
    return str(version)


def _live_a_little(store: PromptStore, rounds: int, seed: int) -> None:
    """Random changes of every kind."""
    choose = random.Random(seed)
    for number in range(rounds):
        task = choose.choice(["sst2", "trec6", "boolq"])
        version = _publish(store, task, seed=seed * 1000 + number, accuracy=choose.random(), actor=choose.choice("ab"))
        kept = [str(each) for each in store.state.task(task).versions if not each.is_expired]
        aliases = store.state.task(task).aliases
        match choose.randrange(6):
            case 0:
                store.attest(choose.choice(kept), "gate", {"verdict": choose.choice(["pass", "fail"]), "n": number})
            case 1:
                store.promote(choose.choice(kept), "staging", reason=f"round {number}")
            case 2:
                statement = Statement("gate", PASS)
                store.release([Promotion(PromptRef.parse(version), statements=[statement])], reason="release")
            case 3:
                free = [each for each in kept if store.resolve(each).number not in aliases.values()]
                store.expire(free[:2], reason="old")
            case 4 if "staging" in aliases:
                store.delete_alias(task, "staging", reason="done")
            case _:
                store.promote(version, "production", force=True, reason="in a hurry")


def test_the_migrations_make_the_tables_that_the_models_describe(new_database: NewDatabase, store: PromptStore) -> None:
    url = new_database()
    Catalog(url).sync(store)
    with Database(url).reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, CatalogTable.metadata) == []


def test_a_catalogue_of_an_empty_store_is_empty_and_syncs_again(new_database: NewDatabase, store: PromptStore) -> None:
    catalog = Catalog(new_database())
    assert catalog.number() == 0
    with pytest.raises(NotFoundError, match="catalog sync"):
        catalog.search(Query())
    assert catalog.sync(store) == SyncReport(0, 0)
    assert catalog.search(Query()) == []
    assert catalog.sync(store) == SyncReport(0, 0)


def test_every_sync_brings_what_is_new_and_a_rebuild_changes_nothing(
    new_database: NewDatabase, store: PromptStore, objects: MemoryObjectStore
) -> None:
    url, at_once = new_database(), new_database()
    catalog = Catalog(url)
    for step in range(12):
        before = store.state.number
        _live_a_little(store, rounds=5, seed=step)
        assert catalog.sync(store) == SyncReport(before, store.state.number)
        assert catalog.sync(store) == SyncReport(store.state.number, store.state.number)
    stepwise = dump_catalog(url)
    Catalog(at_once).sync(sample_store(objects))
    assert dump_catalog(at_once) == stepwise
    assert catalog.rebuild(store) == SyncReport(0, store.state.number)
    assert dump_catalog(url) == stepwise
    assert {name: len(rows) for name, rows in stepwise.items() if not rows} == {}, "a table was never written"


def test_the_tables_agree_with_the_state(new_database: NewDatabase, store: PromptStore) -> None:
    _live_a_little(store, rounds=40, seed=7)
    catalog = Catalog(new_database())
    catalog.sync(store)
    found = catalog.search(Query(with_expired=True, limit=1000))
    versions = [version for task in store.state.tasks.values() for version in task.versions]
    assert {(each.task, each.number, each.digest, each.at, each.author, each.is_expired) for each in found} == {
        (each.task, each.number, each.digest, each.at, each.actor, each.is_expired) for each in versions
    }
    for each in found:
        aliases = store.state.task(each.task).aliases
        assert each.aliases == tuple(sorted(alias for alias, number in aliases.items() if number == each.number))
        assert (each.gate == "pass") == store.state.task(each.task).version(each.number).has_passed_gate
        expected = {} if each.is_expired else dict(store.manifest(each.digest).metrics)
        assert each.metrics == expected
    moves = catalog.moves(limit=1000)
    assert sorted(moves, key=repr) == sorted(store.history(), key=repr)
    assert moves == sorted(moves, key=lambda move: move.commit, reverse=True)
    assert [move.task for move in catalog.moves(task="sst2", alias="production", limit=3)] == ["sst2"] * 3


def test_search_finds_by_each_part_and_by_all_together(new_database: NewDatabase, store: PromptStore) -> None:
    one = _publish(store, "sst2", 1, 0.80, actor="ann", data_digest="a1" + "0" * 62)
    two = _publish(store, "sst2", 2, 0.90, actor="bob", data_digest="a2" + "0" * 62)
    three = _publish(store, "sst5_en", 3, 0.50, actor="ann", data_digest="b3" + "0" * 62)
    store.promote(two, "staging")
    store.attest(two, "gate", {"verdict": "fail"})
    store.attest(two, "gate", PASS)
    catalog = Catalog(new_database())
    catalog.sync(store)

    def found(**parts: object) -> list[str]:
        return [str(each) for each in catalog.search(Query(**parts))]  # type: ignore[arg-type]

    assert found() == [three, two, one]
    assert found(limit=2) == [three, two]
    assert found(task="sst2") == [two, one]
    assert found(task="sst*") == [three, two, one]
    assert found(task="sst5_*") == [three]
    assert found(task="SST2") == found(task="sst_") == found(task="SST*") == found(task="%") == []
    assert found(metrics=[MetricRange("accuracy", at_least=0.8)]) == [two, one]
    assert found(metrics=[MetricRange("accuracy", 0.8, 0.85)]) == [one]
    assert found(metrics=[MetricRange("accuracy", at_most=0.9), MetricRange("loss", at_least=0.15)]) == [three, one]
    assert found(metrics=[MetricRange("f1")]) == []
    assert found(base_model="tiny") == found(base_model="ti*") == [three, two, one]
    assert found(base_model="tin") == []
    assert found(base_model=sample_fingerprint().weights_digest[:12]) == [three, two, one]
    assert found(author="bob") == [two]
    assert found(data_digest="a") == [two, one]
    assert found(data_digest="b3" + "0" * 62) == [three]
    assert found(data_digest="%") == []
    assert found(alias="staging") == found(has_passed_gate=True) == [two]
    assert found(has_passed_gate=False) == [three, one]
    middle = datetime.fromisoformat(store.resolve(two).at)
    assert found(since=middle) == [three, two]
    assert found(until=middle) == [one]
    assert found(since=middle, author="ann", task="sst*", metrics=[MetricRange("loss", at_least=0.5)]) == [three]
    with pytest.raises(InvalidInputError, match="time zone"):
        found(since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidInputError, match="limit"):
        found(limit=0)


def test_what_came_of_the_manifest_goes_when_a_version_expires(
    new_database: NewDatabase, store: PromptStore, objects: MemoryObjectStore
) -> None:
    """Its bytes will be deleted, and a catalogue rebuilt afterwards must hold the same."""
    url = new_database()
    catalog = Catalog(url)
    _publish(store, seed=1)
    kept = _publish(store, seed=2)
    catalog.sync(store)
    store.expire(["sst2:1"])
    catalog.sync(store)
    assert [str(each) for each in catalog.search(Query())] == [kept]
    (expired,) = (each for each in catalog.search(Query(with_expired=True)) if each.is_expired)
    assert (expired.number, expired.base_model, expired.metrics) == (1, None, {})
    before = dump_catalog(url)
    objects.delete(f"manifests/{expired.digest[:2]}/{expired.digest}.json")
    catalog.rebuild(sample_store(objects))
    assert dump_catalog(url) == before


def test_text_that_a_database_might_not_take_is_kept_readable(new_database: NewDatabase, store: PromptStore) -> None:
    version = _publish(store, actor="Ann O'Neill; DROP TABLE catalog_tasks --")
    reason = "\x00 nul, 🦜, \u2028, '\"\\%_ and " + "long " * 5000
    store.promote(version, "staging", reason=reason)
    body = {"note": reason, "big": 2**70, "tiny": 5e-324, "deep": {"list": [1, None, True]}}
    store.attest(version, "evaluation", body)
    url = new_database()
    catalog = Catalog(url)
    catalog.sync(store)
    assert catalog.moves()[0].reason == reason.replace("\x00", "\ufffd")
    assert dump_catalog(url)["catalog_attestations"][0][4] == body
    assert catalog.search(Query())[0].author.startswith("Ann O'Neill")


def test_a_catalogue_of_another_store_is_refused_until_rebuilt(new_database: NewDatabase, store: PromptStore) -> None:
    catalog = Catalog(new_database())
    _publish(store)
    catalog.sync(store)
    other = sample_store(MemoryObjectStore())
    _publish(other, "trec6")
    _publish(other, "trec6", 1)
    with pytest.raises(InvalidInputError, match="of store"):
        catalog.sync(other)
    catalog.rebuild(other)
    assert {each.task for each in catalog.search(Query())} == {"trec6"}


def test_a_log_that_was_rolled_back_or_rewritten_is_refused(
    new_database: NewDatabase, store: PromptStore, objects: MemoryObjectStore
) -> None:
    catalog = Catalog(new_database())
    _publish(store, seed=1)
    saved = {info.key: objects.get(info.key) for info in objects.list("")}
    _publish(store, seed=2)
    catalog.sync(store)
    restored = MemoryObjectStore()
    for key, data in saved.items():
        restored.put(key, data)
    with pytest.raises(UntrustedError, match="rolled back or rewritten"):
        catalog.sync(sample_store(restored))
    forked = sample_store(restored)
    _publish(forked, seed=3)
    with pytest.raises(UntrustedError):
        catalog.sync(forked)
    _publish(forked, seed=4)
    with pytest.raises(UntrustedError):
        catalog.sync(forked)
    catalog.rebuild(forked)
    assert [each.number for each in catalog.search(Query())] == [3, 2, 1]


def test_a_manifest_that_is_gone_stops_the_sync_until_its_version_expires(
    new_database: NewDatabase, store: PromptStore, objects: MemoryObjectStore
) -> None:
    catalog = Catalog(new_database())
    lost = store.resolve(_publish(store, seed=1))
    kept = _publish(store, seed=2)
    objects.delete(f"manifests/{lost.digest[:2]}/{lost.digest}.json")
    with pytest.raises(CorruptError, match=r"sst2:1 is in the log but its manifest is not"):
        catalog.sync(store)
    store.expire([str(lost)])
    catalog.sync(store)
    assert [str(each) for each in catalog.search(Query())] == [kept]


def test_a_catalogue_of_a_newer_promptstore_is_refused_until_rebuilt(
    new_database: NewDatabase, store: PromptStore
) -> None:
    url = new_database()
    catalog = Catalog(url)
    _publish(store)
    catalog.sync(store)
    with Database(url).writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        connection.execute(text("CREATE TABLE catalog_from_the_future (x INTEGER)"))
    with pytest.raises(InvalidInputError, match="9999"):
        catalog.sync(store)
    with pytest.raises(NotFoundError, match="9999"):
        catalog.search(Query())
    catalog.rebuild(store)
    assert len(catalog.search(Query())) == 1
    with Database(url).reading() as connection, pytest.raises(Exception, match="catalog_from_the_future"):
        connection.execute(text("SELECT * FROM catalog_from_the_future"))


def test_a_rebuild_repairs_tables_that_somebody_broke(new_database: NewDatabase, store: PromptStore) -> None:
    url = new_database()
    catalog = Catalog(url)
    _publish(store)
    catalog.sync(store)
    before = dump_catalog(url)
    with Database(url).writing() as connection:
        connection.execute(text("DROP TABLE catalog_moves"))
        connection.execute(text("UPDATE catalog_versions SET actor = 'mallory'"))
        connection.execute(text("CREATE TABLE somebody_elses (x INTEGER)"))
    catalog.rebuild(store)
    assert dump_catalog(url) == before
    with Database(url).reading() as connection:
        connection.execute(text("SELECT * FROM somebody_elses"))


def test_a_failed_sync_leaves_the_catalogue_as_it_was(new_database: NewDatabase, store: PromptStore) -> None:
    """The cursor says commit 0 while the rows of commit 1 are there: the insert must fail, and all of it."""
    url = new_database()
    catalog = Catalog(url)
    _publish(store, seed=1)
    catalog.sync(store)
    with Database(url).writing() as connection:
        connection.execute(update(CursorRow).values(number=0, digest=store.ledger.header.digest))
    before = dump_catalog(url)
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        catalog.sync(store)
    assert dump_catalog(url) == before
