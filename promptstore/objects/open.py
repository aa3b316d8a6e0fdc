"""From a URL to an object store."""

from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from promptstore.errors import InvalidInputError
from promptstore.objects.local import LocalObjectStore
from promptstore.objects.memory import shared_memory_store
from promptstore.store.objects import ObjectStore

# What an S3 URL may say for itself, before the settings: `copy` speaks to two servers.
S3_QUERY = ("endpoint", "region", "profile")
KINDS = "s3://bucket/prefix, file:///folder, a path, or memory://name"


class StoreSettings(Protocol):
    """What opening a store reads of the settings (`promptstore.settings.Settings` has it)."""

    @property
    def s3_endpoint(self) -> str | None: ...
    @property
    def s3_region(self) -> str | None: ...
    @property
    def s3_addressing(self) -> Literal["auto", "path", "virtual"]: ...
    @property
    def s3_encryption(self) -> str | None: ...
    @property
    def s3_timeout_s(self) -> float: ...


def open_object_store(url: str, settings: StoreSettings) -> ObjectStore:
    """The driver for `url`: s3://bucket/prefix, file:///folder, a path, or memory://name. Touches no network, no disk.

    An S3 URL may name its own `?endpoint=…&region=…&profile=…`, before the settings; an empty endpoint is AWS.

    Raises:
        InvalidInputError: `url` names no kind of store, or the kind's own part is wrong.
    """
    kind, has_kind, rest = url.partition("://")
    if not url:
        raise InvalidInputError(f"no store is named; expected {KINDS} (setting PROMPTSTORE_STORE, option --store)")
    if not has_kind:
        return LocalObjectStore(Path(url).expanduser())
    match kind:
        case "file":
            return LocalObjectStore(_folder(url))
        case "memory":
            return shared_memory_store(rest)
        case "s3":
            return _open_s3(url, settings)
        case _:
            raise InvalidInputError(f"store {url!r} is of unknown kind {kind!r}; expected {KINDS}")


def _folder(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise InvalidInputError(f"store {url!r}: expected file:///folder with three slashes and an absolute path")
    return Path(unquote(parts.path))


def _open_s3(url: str, settings: StoreSettings) -> ObjectStore:
    from promptstore.objects.s3 import S3ObjectStore, S3Options

    address, _, query = url.removeprefix("s3://").partition("?")
    bucket, _, prefix = address.partition("/")
    said = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := said.keys() - set(S3_QUERY):
        raise InvalidInputError(f"store {url!r} says {', '.join(sorted(unknown))}; expected only {', '.join(S3_QUERY)}")
    options = S3Options(
        endpoint=said.get("endpoint", settings.s3_endpoint) or None,
        region=said.get("region", settings.s3_region) or None,
        addressing=settings.s3_addressing,
        encryption=settings.s3_encryption,
        timeout_s=settings.s3_timeout_s,
        profile=said.get("profile") or None,
        query=query,
    )
    return S3ObjectStore(bucket, prefix.strip("/"), options)
