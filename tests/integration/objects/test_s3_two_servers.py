"""Two S3 servers at once: each store's URL says which one it is on, and with whose credentials."""

import os
from pathlib import Path
from uuid import uuid4

import pytest

from promptstore.errors import InvalidInputError, StoreUnavailableError
from promptstore.objects.open import open_object_store
from promptstore.settings import load_settings
from promptstore.store.copy import copy_store
from promptstore.store.verify import verify
from promptstore.testing.servers import S3Server
from promptstore.testing.store_samples import sample_prompt, sample_task
from promptstore.wiring import open_store


def test_a_copy_goes_to_another_server_with_other_credentials(
    moto: S3Server, seaweedfs: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    key, secret = (os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    credentials.write_text(f"[backup]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")  # the emulator lets everybody in
    monkeypatch.setenv("PROMPTSTORE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PROMPTSTORE_S3_ENDPOINT", moto.endpoint)

    name = f"copies/{uuid4().hex}"
    source = open_store(f"s3://{moto.bucket}/{name}")
    version = source.publish(sample_prompt(1), sample_task())
    there = f"s3://{seaweedfs.bucket}/{name}?endpoint={seaweedfs.endpoint}"

    with pytest.raises(StoreUnavailableError, match="AWS_ACCESS_KEY_ID"):
        copy_store(source.ledger, open_object_store(there, load_settings()))
    target = open_object_store(f"{there}&profile=backup", load_settings())
    assert copy_store(source.ledger, target).commits == len(list(source.ledger.commits()))
    assert verify(target).is_clean
    assert open_store(f"{there}&profile=backup", create=False).resolve(str(version)) == version


def test_a_profile_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInputError, match="no-such-profile"):
        open_object_store("s3://bucket/x?profile=no-such-profile", load_settings()).get("k")
