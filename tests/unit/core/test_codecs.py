"""Commits, operations, manifests and headers as bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstore.core.commit import MAX_COMMIT_BYTES, Commit
from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.header import StoreHeader
from promptstore.core.manifest import Manifest
from promptstore.core.operation import Operation, operation_from_json, operation_to_json
from promptstore.core.sealed import seal
from promptstore.errors import CorruptError
from promptstore.testing.strategies import commits, instants, manifests, names, operations, texts

COMMIT = Commit(1, "id", "0" * 64, "2026-01-01T00:00:00.000000Z", "me", "why", ())


@given(operations)
def test_an_operation_reads_back_equal(operation: Operation) -> None:
    assert operation_from_json(json.loads(json.dumps(operation_to_json(operation)))) == operation


@given(commits())
def test_a_commit_reads_back_equal_and_in_the_same_bytes(commit: Commit) -> None:
    read = Commit.from_bytes(commit.to_bytes(), commit.number)
    assert read == commit
    assert read.to_bytes() == commit.to_bytes()
    assert read.digest == sha256_hex(commit.to_bytes())


@given(manifests)
def test_a_manifest_reads_back_equal_and_in_the_same_bytes(manifest: Manifest) -> None:
    read = Manifest.from_bytes(manifest.to_bytes())
    assert read == manifest
    assert read.digest == manifest.digest == sha256_hex(manifest.to_bytes())


@given(st.builds(StoreHeader, texts, instants, st.frozensets(names, max_size=3)))
def test_a_header_reads_back_equal(header: StoreHeader) -> None:
    assert StoreHeader.from_bytes(header.to_bytes()) == header


def _commit_json(**changes: Any) -> bytes:
    value = json.loads(COMMIT.to_bytes())
    del value["sha256"]
    return seal({**value, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "upgrade"),
        ({"number": 2}, "says it is commit 2"),
        ({"number": True}, "number is True"),
        ({"parent": "xyz"}, "parent"),
        ({"at": "yesterday"}, "at is"),
        ({"surprise": 1}, "unknown field surprise"),
        ({"checkpoint": "0" * 64}, "commits 101, 201"),
        ({"operations": [{"op": "explode", "task": "sst2"}]}, "needs a newer promptstore"),
        ({"operations": [{"op": "expire", "task": "../x", "number": 1}]}, "not a valid name"),
        ({"operations": [{"op": "expire", "task": "sst2", "number": 0}]}, "at least 1"),
        ({"operations": [{"op": "condemn", "digests": ["b" * 64, "a" * 64]}]}, "ascending"),
        ({"operations": [{"op": "condemn", "digests": ["b"]}]}, "hexadecimal"),
        ({"operations": {}}, "operations is"),
    ],
)
def test_a_commit_that_no_writer_writes_is_corrupt(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        Commit.from_bytes(_commit_json(**changes), 1)


def test_a_commit_that_is_larger_than_the_format_allows_is_corrupt() -> None:
    assert Commit.from_bytes(_commit_json(reason="x" * (MAX_COMMIT_BYTES - 2000)), 1).reason
    with pytest.raises(CorruptError, match="at most 8388608"):
        Commit.from_bytes(_commit_json(reason="x" * MAX_COMMIT_BYTES), 1)


def test_commit_101_must_name_a_checkpoint() -> None:
    with pytest.raises(CorruptError, match="commits 101, 201"):
        Commit.from_bytes(_commit_json(number=101), 101)
    assert Commit.from_bytes(_commit_json(number=101, checkpoint="0" * 64), 101).checkpoint == "0" * 64


def _manifest_json(change: Any) -> bytes:
    value = {
        "format": 1,
        "payload": {"digest": "0" * 64, "bytes": 1, "num_virtual_tokens": 1, "hidden_size": 1},
        "fingerprint": {
            "architecture": "A",
            "hidden_size": 1,
            "weights_digest": "0" * 64,
            "tokenizer_digest": "0" * 64,
            "name": "n",
            "revision": None,
        },
        "task": {
            "name": "sst2",
            "kind": "generation",
            "template": "{text}",
            "labels": [],
            "target_field": "label",
            "metric": "accuracy",
            "max_input_tokens": 1,
            "max_target_tokens": 1,
            "data": {"train": "a", "validation": "b"},
            "tuning": {},
        },
        "provenance": dict.fromkeys(("mlflow_run", "git_commit", "config_digest", "data_digest", "parent")),
        "metrics": {},
    }
    change(value)
    return canonical_json(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(format=2),
        lambda value: value.update(extra=1),
        lambda value: value["task"].update(template="no field"),
        lambda value: value["task"].update(kind="poetry"),
        lambda value: value["metrics"].update(accuracy="high"),
        lambda value: value["metrics"].update(accuracy=1),
        lambda value: value["payload"].update(bytes=0),
        lambda value: value.pop("provenance"),
    ],
)
def test_a_manifest_that_no_writer_writes_is_corrupt(change: Any) -> None:
    Manifest.from_bytes(_manifest_json(lambda value: value))
    with pytest.raises(CorruptError):
        Manifest.from_bytes(_manifest_json(change))


def test_protected_aliases_of_a_header_are_in_order() -> None:
    fields = {"format": 1, "id": "x", "created_at": "2026-01-01T00:00:00.000000Z", "protected_aliases": ["b", "a"]}
    with pytest.raises(CorruptError, match="canonical order"):
        StoreHeader.from_bytes(seal(fields))
    with pytest.raises(CorruptError, match="not a valid name"):
        StoreHeader.from_bytes(seal({**fields, "protected_aliases": ["../x"]}))
