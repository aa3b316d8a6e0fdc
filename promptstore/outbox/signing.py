"""Signatures of webhooks, as the Standard Webhooks specification 1.0 has them (symmetric, `v1`)."""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from promptstore.errors import InvalidInputError

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A key that sender and receiver share: 24 to 64 bytes."""

    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "SigningSecret":
        """The secret in `whsec_<base64>`.

        Raises:
            InvalidInputError: it is not; the message does not repeat it.
        """
        if not text.startswith(PREFIX):
            raise InvalidInputError(f"a webhook secret starts with {PREFIX}; `promptstore outbox secret` makes one")
        try:
            key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error as error:
            raise InvalidInputError(f"what follows {PREFIX} in the webhook secret is not base64") from error
        if not SHORTEST <= len(key) <= LONGEST:
            raise InvalidInputError(f"the webhook secret has {len(key)} bytes, expected {SHORTEST} to {LONGEST}")
        return cls(key)

    @classmethod
    def new(cls) -> "SigningSecret":
        return cls(secrets.token_bytes(32))

    def __str__(self) -> str:
        return PREFIX + base64.b64encode(self.key).decode()


def parse_secrets(text: str) -> list[SigningSecret]:
    """The secrets in `text`, separated by white space: more than one while a receiver changes from one to the next.

    Raises:
        InvalidInputError: there is none, or one is not valid.
    """
    found = [SigningSecret.parse(each) for each in text.split()]
    if not found:
        raise InvalidInputError("there is no webhook secret; `promptstore outbox secret` makes one")
    return found


def signed_headers(keys: Sequence[SigningSecret], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that let a receiver check who sent `body`, and when. timestamp: Unix seconds of this attempt."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(each.key, signed, hashlib.sha256)).decode() for each in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
