"""Whose commits count: Ed25519 signatures on the log."""

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from promptstore.core.commit import Commit, Signature
from promptstore.core.name import check_key_name
from promptstore.errors import InvalidInputError, NotFoundError, UntrustedError


class Signer:
    """Signs commits with one private key."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.key = key_id(private_key.public_key())

    @classmethod
    def load(cls, path: Path) -> "Signer":
        """The signer of a private key file (PEM, PKCS 8, not encrypted) that `generate_key` or openssl wrote.

        Raises:
            NotFoundError: no such file. InvalidInputError: not an Ed25519 private key, or others may read it.
        """
        data = _read_key_file(path)
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise InvalidInputError(f"private key {path} can be read by others; run `chmod 600 {path}`")
        try:
            private_key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InvalidInputError(f"{path} is not an unencrypted private key in PEM form: {error}") from error
        if not isinstance(private_key, Ed25519PrivateKey):
            raise InvalidInputError(f"{path} holds another kind of key, expected Ed25519; run `promptstore keys new`")
        return cls(private_key)

    def sign(self, commit: Commit) -> Commit:
        value = base64.b64encode(self._private_key.sign(commit.signed_bytes())).decode("ascii")
        return commit.with_signature(Signature(self.key, value))


class TrustPolicy:
    """Public keys by id: a commit counts if one of them signed it."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def load(cls, folder: Path) -> "TrustPolicy":
        """The policy that trusts every `*.pub` file of `folder`.

        Raises:
            NotFoundError: no such folder. InvalidInputError: it holds no key, or a file that is not one.
        """
        if not folder.is_dir():
            raise NotFoundError(f"folder of trusted keys {folder} does not exist")
        keys = [_load_public_key(path) for path in _public_key_files(folder)]
        if not keys:
            raise InvalidInputError(f"folder of trusted keys {folder} holds no *.pub file, so no commit would count")
        return cls({key_id(key): key for key in keys})

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._keys)

    def require(self, commit: Commit) -> None:
        """Refuse a commit that no trusted key signed.

        Raises:
            UntrustedError: it is unsigned, or signed by others only, or a signature does not fit.
        """
        ours = [each for each in commit.signatures if each.key in self._keys]
        if not ours:
            signers = ", ".join(each.key[:12] for each in commit.signatures)
            found = f"is signed only by {signers}" if signers else "is not signed"
            trusted = ", ".join(sorted(key[:12] for key in self._keys))
            raise UntrustedError(
                f"commit {commit.number} ({commit.actor or 'unknown actor'}, {commit.at}) {found}; trusted keys: "
                f"{trusted}. Add the writer's public key if you trust it, else find out who wrote to this store"
            )
        for signature in ours:
            self._verify(signature, commit)

    def _verify(self, signature: Signature, commit: Commit) -> None:
        try:
            value = base64.b64decode(signature.value, validate=True)
            self._keys[signature.key].verify(value, commit.signed_bytes())
        except (InvalidSignature, ValueError) as error:
            raise UntrustedError(
                f"commit {commit.number}: the signature of key {signature.key[:12]} does not fit its content; "
                "it was altered after signing"
            ) from error


def accept_all(commit: Commit) -> None:
    """The policy of a reader without trusted keys: the chain and the fold are all that is checked."""
    _ = commit


def generate_key(folder: Path, name: str) -> str:
    """Make `NAME.key` (private, readable by its owner alone) and `NAME.pub` in `folder`; returns the key's id.

    Raises:
        InvalidInputError: `name` cannot be a file name, or such a key exists: a key is never overwritten.
    """
    check_key_name(name)
    private_key = Ed25519PrivateKey.generate()
    private = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    _create(folder / f"{name}.key", private, 0o600)
    _create(folder / f"{name}.pub", public, 0o644)
    return key_id(private_key.public_key())


def public_keys(folder: Path) -> dict[str, str]:
    """Ids of the public keys in `folder`, by the names of their files. Raises InvalidInputError: one is no key."""
    return {path.stem: key_id(_load_public_key(path)) for path in _public_key_files(folder)}


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 raw bytes of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def _public_key_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pub"))


def _load_public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_read_key_file(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(f"{path} is not a public key in PEM form: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInputError(f"{path} holds another kind of key, expected Ed25519")
    return key


def _read_key_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"key file {path} cannot be read: {error.strerror}") from error


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise InvalidInputError(f"{path} exists; a key is never overwritten, choose another name") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
