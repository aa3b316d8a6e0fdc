"""What the S3 driver tells people who set it up wrongly."""

import multiprocessing
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import botocore.auth
import pytest

from promptstore.errors import InvalidInputError, PromptStoreError, StoreUnavailableError, UnsupportedStoreError
from promptstore.loopback import free_port
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.testing.servers import S3Server


def _store(server: S3Server, *, bucket: str | None = None, **options: object) -> S3ObjectStore:
    settings = replace(S3Options(endpoint=server.endpoint), **options)  # type: ignore[arg-type]
    return S3ObjectStore(bucket or server.bucket, f"troubles/{uuid4().hex}", settings)


def _each_call_says(store: ObjectStore, message: str) -> None:
    with pytest.raises(StoreUnavailableError, match=message):
        store.get("k")
    with pytest.raises(StoreUnavailableError, match=message):
        store.put("k", b"")
    with pytest.raises(StoreUnavailableError, match=message):
        store.put_if_absent("k", b"")
    with pytest.raises(StoreUnavailableError, match=message):
        list(store.list(""))
    with pytest.raises(StoreUnavailableError, match=message):
        store.delete("k")


def test_an_endpoint_where_nobody_listens_is_named() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    store = S3ObjectStore("bucket", "", S3Options(endpoint=endpoint))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "something")
        _each_call_says(store, f"{endpoint}.*PROMPTSTORE_S3_ENDPOINT")


def test_missing_credentials_are_named(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    _each_call_says(_store(seaweedfs), "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong-wrong-wrong-wrong")
    _each_call_says(_store(seaweedfs), "check AWS_ACCESS_KEY_ID")


def test_a_missing_bucket_is_no_missing_object(seaweedfs: S3Server) -> None:
    _each_call_says(_store(seaweedfs, bucket="nobody-made-this"), "'nobody-made-this' does not exist .* create it")


def test_a_clock_that_is_a_day_off_is_named(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = botocore.auth.get_current_datetime
    a_day = timedelta(days=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *given, **named: now(*given, **named) - a_day)
    _each_call_says(_store(seaweedfs), "clock is off")


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="http"):
        S3ObjectStore("bucket", "", S3Options(endpoint="not a url")).get("k")


@pytest.mark.parametrize("bucket", ["", "a/b"])
def test_a_bucket_that_cannot_be_is_refused(bucket: str) -> None:
    with pytest.raises(InvalidInputError):
        S3ObjectStore(bucket)


@pytest.mark.parametrize("encryption", ["", "aes", "aws:kms:", "x-aws:kms:1"])
def test_an_unknown_encryption_is_refused(encryption: str) -> None:
    with pytest.raises(InvalidInputError, match="AES256"):
        S3ObjectStore("bucket", "", S3Options(encryption=encryption))


def test_writes_ask_for_encryption_at_rest(moto: S3Server) -> None:
    key = moto.client().meta.region_name
    for encryption, algorithm in (("AES256", "AES256"), ("aws:kms", "aws:kms"), (f"aws:kms:{key}", "aws:kms")):
        store = _store(moto, encryption=encryption)
        prefix = store.url.removeprefix(f"s3://{moto.bucket}/")
        store.put("put", b"x")
        store.put_if_absent("created", b"x")
        for name in ("put", "created"):
            head = moto.client().head_object(Bucket=moto.bucket, Key=f"{prefix}/{name}")
            assert head["ServerSideEncryption"] == algorithm


def test_two_prefixes_of_one_bucket_do_not_see_each_other(seaweedfs: S3Server) -> None:
    one, other = _store(seaweedfs), _store(seaweedfs)
    one.put("k", b"1")
    assert list(other.list("")) == []
    assert other.put_if_absent("k", b"2") is True
    assert one.get("k") == b"1"


def test_the_marker_of_a_folder_that_a_console_made_is_no_object(moto: S3Server) -> None:
    store = _store(moto)
    prefix = store.url.removeprefix(f"s3://{moto.bucket}/")
    moto.client().put_object(Bucket=moto.bucket, Key=f"{prefix}/", Body=b"")
    moto.client().put_object(Bucket=moto.bucket, Key=f"{prefix}/commits/", Body=b"")
    store.put("commits/1", b"x")
    assert [info.key for info in store.list("")] == ["commits/1"]


def test_a_forked_process_uses_connections_of_its_own(seaweedfs: S3Server) -> None:
    store = _store(seaweedfs)
    store.put("k", b"x" * 100_000)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_read_often, args=(store,)) for _ in range(3)]
    for child in children:
        child.start()
    _read_often(store)
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def _read_often(store: ObjectStore) -> None:
    for _ in range(50):
        assert store.get("k") == b"x" * 100_000


def test_a_ledger_refuses_a_server_that_ignores_create_only_writes(careless: S3Server) -> None:
    with pytest.raises(UnsupportedStoreError, match="ignores create-only writes"):
        Ledger.create(_store(careless), actor="tester")


def test_a_ledger_copied_to_such_a_server_can_be_read_but_not_extended(careless: S3Server) -> None:
    store = _store(careless)
    with pytest.raises(PromptStoreError):
        Ledger.create(store, actor="tester")
    ledger = Ledger.open(store, actor="tester")
    assert ledger.refresh().number == 0
    with pytest.raises(UnsupportedStoreError):
        ledger.commit(lambda _: (), reason="")
