"""Which model a prompt was fitted to."""

from dataclasses import dataclass
from typing import Any

from promptstore.core.fields import Fields
from promptstore.errors import IncompatibleModelError


@dataclass(frozen=True, slots=True)
class BaseModelFingerprint:
    """Identity of a frozen base model: two models with equal identity give a prompt the same meaning.

    `name` and `revision` are for people and take no part in the comparison.
    """

    architecture: str
    hidden_size: int
    weights_digest: str
    tokenizer_digest: str
    name: str
    revision: str | None = None

    @property
    def identity(self) -> tuple[str, int, str, str]:
        """What must be equal for a prompt of one model to be valid on another."""
        return (self.architecture, self.hidden_size, self.weights_digest, self.tokenizer_digest)

    def require_match(self, served: "BaseModelFingerprint", what: str) -> None:
        """Refuse `what`, a prompt fitted to this model, on the `served` model.

        Raises:
            IncompatibleModelError: the identities differ; the message says in which part.
        """
        if self.identity == served.identity:
            return
        names = ("architecture", "hidden size", "weights", "tokenizer")
        differences = [
            f"{name} {_short(ours)} against {_short(theirs)}"
            for name, ours, theirs in zip(names, self.identity, served.identity, strict=True)
            if ours != theirs
        ]
        raise IncompatibleModelError(
            f"{what} was fitted to {self.name} but the loaded model is {served.name}: "
            f"{'; '.join(differences)}. Load {self.name}, or tune the task again on {served.name}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "weights_digest": self.weights_digest,
            "tokenizer_digest": self.tokenizer_digest,
            "name": self.name,
            "revision": self.revision,
        }

    @classmethod
    def from_json(cls, value: Any) -> "BaseModelFingerprint":
        fields = Fields(value, "base model fingerprint")
        fingerprint = cls(
            architecture=fields.text("architecture"),
            hidden_size=fields.integer("hidden_size", at_least=1),
            weights_digest=fields.digest("weights_digest"),
            tokenizer_digest=fields.digest("tokenizer_digest"),
            name=fields.text("name"),
            revision=fields.optional_text("revision"),
        )
        fields.done()
        return fingerprint


def _short(value: object) -> str:
    return str(value)[:12]
