"""What a version is. The SHA-256 of a manifest's bytes is the version's digest, everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptstore.core.digest import canonical_json, parse_json, sha256_hex
from promptstore.core.fields import Fields
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, InvalidInputError

MANIFEST_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Payload:
    """The stored bytes of a prompt: a safetensors file with one float32 [P, H] tensor."""

    digest: str
    payload_bytes: int
    num_virtual_tokens: int
    hidden_size: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a version comes from; every part may be unknown (`None`) for an imported prompt.

    parent: digest of the version this one was warm-started from.
    """

    mlflow_run: str | None = None
    git_commit: str | None = None
    config_digest: str | None = None
    data_digest: str | None = None
    parent: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "mlflow_run": self.mlflow_run,
            "git_commit": self.git_commit,
            "config_digest": self.config_digest,
            "data_digest": self.data_digest,
            "parent": self.parent,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Provenance":
        fields = Fields(value, "provenance")
        provenance = cls(
            mlflow_run=fields.optional_text("mlflow_run"),
            git_commit=fields.optional_text("git_commit"),
            config_digest=fields.optional_digest("config_digest"),
            data_digest=fields.optional_digest("data_digest"),
            parent=fields.optional_digest("parent"),
        )
        fields.done()
        return provenance


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version without its number: payload, model, task, provenance and the metrics known at publish.

    Holds no clock time, so publishing the same thing twice gives the same digest.
    """

    payload: Payload
    fingerprint: BaseModelFingerprint
    task: TaskSpec
    provenance: Provenance = Provenance()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Canonical JSON; its SHA-256 is `digest`."""
        return canonical_json(
            {
                "format": MANIFEST_FORMAT,
                "payload": {
                    "digest": self.payload.digest,
                    "bytes": self.payload.payload_bytes,
                    "num_virtual_tokens": self.payload.num_virtual_tokens,
                    "hidden_size": self.payload.hidden_size,
                },
                "fingerprint": self.fingerprint.to_json(),
                "task": self.task.to_json(),
                "provenance": self.provenance.to_json(),
                "metrics": {name: float(value) for name, value in self.metrics.items()},
            }
        )

    @property
    def digest(self) -> str:
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The manifest in `data`.

        Raises:
            CorruptError: not a manifest of a format this version reads.
        """
        fields = Fields(parse_json(data, "manifest"), "manifest")
        if (found := fields.integer("format")) != MANIFEST_FORMAT:
            raise CorruptError(f"manifest has format {found}, this promptstore reads {MANIFEST_FORMAT}; upgrade it")
        try:
            manifest = _read(fields)
            is_canonical = manifest.to_bytes() == data
        except InvalidInputError as error:
            raise CorruptError(f"manifest: {error}") from error
        if not is_canonical:
            raise CorruptError("manifest is not in canonical form")
        return manifest


def _read(fields: Fields) -> Manifest:
    payload = Fields(fields.mapping("payload"), "manifest: payload")
    manifest = Manifest(
        payload=Payload(
            digest=payload.digest("digest"),
            payload_bytes=payload.integer("bytes", at_least=1),
            num_virtual_tokens=payload.integer("num_virtual_tokens", at_least=1),
            hidden_size=payload.integer("hidden_size", at_least=1),
        ),
        fingerprint=BaseModelFingerprint.from_json(fields.mapping("fingerprint")),
        task=TaskSpec.from_json(fields.mapping("task")),
        provenance=Provenance.from_json(fields.mapping("provenance")),
        metrics=fields.numbers("metrics"),
    )
    payload.done()
    fields.done()
    return manifest
