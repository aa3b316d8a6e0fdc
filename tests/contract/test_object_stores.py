from pathlib import Path
from uuid import uuid4

import pytest

from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import MemoryObjectStore
from promptstore.objects.s3 import S3ObjectStore, S3Options
from promptstore.store.objects import ObjectStore
from promptstore.testing.object_store_contract import ObjectStoreContract
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.servers import S3Server


class TestMemoryObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryObjectStore()


class TestLocalObjectStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return LocalObjectStore(tmp_path / "a folder with spaces" / "store")


class TestScriptedObjectsWithoutFaults(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return ScriptedObjects(MemoryObjectStore())


class TestS3ObjectStoreOnSeaweedFS(ObjectStoreContract):
    orders_names_that_continue_folders = False

    @pytest.fixture
    def store(self, seaweedfs: S3Server) -> ObjectStore:
        return _store_of_a_test(seaweedfs)


@pytest.mark.ceph
class TestS3ObjectStoreOnCeph(ObjectStoreContract):
    @pytest.fixture
    def store(self, ceph: S3Server) -> ObjectStore:
        return _store_of_a_test(ceph)


class TestS3ObjectStoreOnMoto(ObjectStoreContract):
    is_atomic_under_races = False
    race_rounds = 5

    @pytest.fixture
    def store(self, moto: S3Server) -> ObjectStore:
        return _store_of_a_test(moto)


def _store_of_a_test(server: S3Server) -> ObjectStore:
    return S3ObjectStore(server.bucket, f"tests/{uuid4().hex}", S3Options(endpoint=server.endpoint))
