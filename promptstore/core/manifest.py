"""What a version is. The SHA-256 of a manifest's bytes is the version's digest, everywhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptstore.core.digest import canonical_json, parse_json, sha256_hex
from promptstore.core.ensemble import Ensemble
from promptstore.core.fields import Fields
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.task import TaskSpec
from promptstore.errors import CorruptError, InvalidInputError

MANIFEST_FORMAT = 1
ENSEMBLE_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Payload:
    """The stored bytes of a prompt: a safetensors file with one float32 [P, H] tensor, [K, P, H] of an ensemble."""

    digest: str
    payload_bytes: int
    num_virtual_tokens: int
    hidden_size: int
    ensemble: Ensemble | None = None

    def to_json(self) -> dict[str, Any]:
        described = {
            "digest": self.digest,
            "bytes": self.payload_bytes,
            "num_virtual_tokens": self.num_virtual_tokens,
            "hidden_size": self.hidden_size,
        }
        return described if self.ensemble is None else {**described, "ensemble": self.ensemble.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> "Payload":
        fields = Fields(value, "manifest: payload")
        payload = cls(
            digest=fields.digest("digest"),
            payload_bytes=fields.integer("bytes", at_least=1),
            num_virtual_tokens=fields.integer("num_virtual_tokens", at_least=1),
            hidden_size=fields.integer("hidden_size", at_least=1),
            ensemble=Ensemble.from_json(fields.mapping("ensemble")) if fields.has("ensemble") else None,
        )
        fields.done()
        return payload


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

    Raises:
        InvalidInputError: an ensemble for a task that generates text: only labels have an average.
    """

    payload: Payload
    fingerprint: BaseModelFingerprint
    task: TaskSpec
    provenance: Provenance = Provenance()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.payload.ensemble is not None and self.task.kind != "classification":
            raise InvalidInputError(
                f"task {self.task.name} generates text, an ensemble classifies; publish its members one by one"
            )

    @property
    def format(self) -> int:
        """A reader that knows no ensembles must not take one for a prompt."""
        return MANIFEST_FORMAT if self.payload.ensemble is None else ENSEMBLE_FORMAT

    def to_bytes(self) -> bytes:
        """Canonical JSON; its SHA-256 is `digest`."""
        return canonical_json(
            {
                "format": self.format,
                "payload": self.payload.to_json(),
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
        if (found := fields.integer("format")) not in (MANIFEST_FORMAT, ENSEMBLE_FORMAT):
            raise CorruptError(f"manifest has format {found}, this promptstore reads {ENSEMBLE_FORMAT}; upgrade it")
        try:
            manifest = _read(fields)
            is_canonical = manifest.to_bytes() == data
        except InvalidInputError as error:
            raise CorruptError(f"manifest: {error}") from error
        if not is_canonical:
            raise CorruptError("manifest is not in canonical form")
        return manifest


def _read(fields: Fields) -> Manifest:
    manifest = Manifest(
        payload=Payload.from_json(fields.mapping("payload")),
        fingerprint=BaseModelFingerprint.from_json(fields.mapping("fingerprint")),
        task=TaskSpec.from_json(fields.mapping("task")),
        provenance=Provenance.from_json(fields.mapping("provenance")),
        metrics=fields.numbers("metrics"),
    )
    fields.done()
    return manifest
