from pathlib import Path

import pytest

from promptstore.errors import InvalidInputError
from promptstore.objects.open import open_object_store
from promptstore.settings import Settings

SETTINGS = Settings(s3_endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/team/prompts/", "s3://bucket/team/prompts"),
        (
            "s3://bucket/x?endpoint=http://127.0.0.1:9&profile=eu",
            "s3://bucket/x?endpoint=http://127.0.0.1:9&profile=eu",
        ),
        ("file:///var/prompt%20store", "file:///var/prompt%20store"),
        ("file://localhost/var/x", "file:///var/x"),
        ("/var/prompt store", "file:///var/prompt%20store"),
        ("store", (Path.cwd() / "store").as_uri()),
        ("~/store", (Path.home() / "store").as_uri()),
        ("memory://x", "memory://x"),
    ],
)
def test_a_url_opens_the_store_it_names(url: str, opened: str) -> None:
    assert open_object_store(url, SETTINGS).url == opened


@pytest.mark.parametrize("url", ["", "gs://bucket/x", "http://host/x", "://x"])
def test_an_unknown_kind_is_refused_with_the_kinds_there_are(url: str) -> None:
    with pytest.raises(InvalidInputError, match=r"s3://bucket/prefix, file:///folder, a path, or memory://name"):
        open_object_store(url, SETTINGS)


@pytest.mark.parametrize(
    "url", ["file://folder", "file:///x?y", "file:///x#y", "s3://", "s3:///x", "s3://b/../x", "s3://b/x?profil=eu"]
)
def test_a_url_that_is_wrong_within_its_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        open_object_store(url, SETTINGS)


def test_a_memory_store_is_shared_by_name_within_the_process() -> None:
    open_object_store("memory://shared", SETTINGS).put("k", b"x")
    assert open_object_store("memory://shared", SETTINGS).get("k") == b"x"
    assert list(open_object_store("memory://other", SETTINGS).list("")) == []


def test_opening_a_folder_makes_nothing(tmp_path: Path) -> None:
    store = open_object_store(str(tmp_path / "new"), SETTINGS)
    assert list(store.list("")) == []
    assert not (tmp_path / "new").exists()
