"""A version in one file, to carry from store to store: a ZIP of manifest, payload and what was said about it."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

from promptstore.core.digest import canonical_json, parse_json, sha256_hex
from promptstore.core.fields import Fields
from promptstore.core.manifest import Manifest
from promptstore.core.prompt import SoftPrompt
from promptstore.errors import CorruptError
from promptstore.store.payload import decode_payload, encode_payload
from promptstore.store.promotion import Statement
from promptstore.store.prompt_store import PulledPrompt

BUNDLE_FORMAT = 1
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ENTRIES = {"bundle.json": 8 << 20, "manifest.json": 8 << 20, "payload.safetensors": 1 << 30}


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds. origin: store id, task and number it was exported from, for people.

    statements: the attestations at the time of export, oldest first; publishing a bundle does not repeat them, since
    they were made about another store.
    """

    manifest: Manifest
    prompt: SoftPrompt
    origin: dict[str, Any]
    statements: tuple[Statement, ...]


def write_bundle(pulled: PulledPrompt, store_id: str = "") -> bytes:
    """The bundle of one version; the same version gives the same bytes. Publishing it elsewhere keeps the digest."""
    version = pulled.version
    about = {
        "format": BUNDLE_FORMAT,
        "digest": version.digest,
        "origin": {"store": store_id, "task": version.task, "number": version.number, "at": version.at},
        "attestations": [{"kind": each.kind, "body": dict(each.body)} for each in version.attestations],
    }
    entries = {
        "bundle.json": canonical_json(about),
        "manifest.json": pulled.manifest.to_bytes(),
        "payload.safetensors": encode_payload(pulled.prompt),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
    return file.getvalue()


def read_bundle(data: bytes) -> Bundle:
    """What `write_bundle` wrote, checked against its digests.

    Raises:
        CorruptError: not a bundle, or one that was damaged or changed.
    """
    entries = _entries(data)
    fields = Fields(parse_json(entries["bundle.json"], "bundle"), "bundle")
    if (found := fields.integer("format")) != BUNDLE_FORMAT:
        raise CorruptError(f"bundle has format {found}, this promptstore reads {BUNDLE_FORMAT}; upgrade it")
    digest, origin = fields.digest("digest"), fields.mapping("origin")
    statements = tuple(_statement(each) for each in fields.array("attestations"))
    fields.done()
    if sha256_hex(entries["manifest.json"]) != digest:
        raise CorruptError(f"bundle: the manifest is not the one with digest {digest[:12]}…")
    manifest = Manifest.from_bytes(entries["manifest.json"])
    if sha256_hex(entries["payload.safetensors"]) != manifest.payload.digest:
        raise CorruptError("bundle: the payload is not the one that the manifest names")
    prompt = decode_payload(entries["payload.safetensors"], manifest.fingerprint)
    return Bundle(manifest, prompt, origin, statements)


def _entries(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sorted(info.filename for info in infos) != sorted(_ENTRIES):
                raise CorruptError(f"bundle holds {[info.filename for info in infos]}, expected {list(_ENTRIES)}")
            for info in infos:
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > _ENTRIES[info.filename]:
                    raise CorruptError(f"bundle: {info.filename} is compressed, or larger than it may be")
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CorruptError(f"not a bundle: {error}") from error


def _statement(value: Any) -> Statement:
    fields = Fields(value, "bundle: attestation")
    statement = Statement(fields.name("kind"), fields.mapping("body"))
    fields.done()
    return statement
