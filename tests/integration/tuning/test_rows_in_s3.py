"""Labelled rows are read from a real S3 server."""

import uuid

import pytest

from promptstore.errors import NotFoundError
from promptstore.objects.open import open_object_store
from promptstore.settings import load_settings
from promptstore.testing.servers import S3Server
from promptstore.tuning.data import load_rows


def test_rows_come_from_the_bucket_that_the_settings_reach(seaweedfs: S3Server) -> None:
    settings = load_settings(s3_endpoint=seaweedfs.endpoint)
    prefix = f"rows-{uuid.uuid4().hex}"
    objects = open_object_store(f"s3://{seaweedfs.bucket}/{prefix}", settings)
    objects.put("train.csv", b"text,label\ngood,pos\n")

    rows = load_rows(f"s3://{seaweedfs.bucket}/{prefix}/train.csv", settings=settings)

    assert list(rows) == [{"text": "good", "label": "pos"}]
    with pytest.raises(NotFoundError, match=rf"{prefix}/validation\.csv"):
        load_rows(f"s3://{seaweedfs.bucket}/{prefix}/validation.csv", settings=settings)
