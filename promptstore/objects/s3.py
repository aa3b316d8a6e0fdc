"""An object store in a bucket of AWS S3 or a server that speaks its protocol (SeaweedFS, Ceph RGW, …)."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from threading import Lock
from typing import Any, Literal, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from promptstore.errors import (
    CommitOutcomeUnknownError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
    UnsupportedStoreError,
)
from promptstore.objects.keys import check_key
from promptstore.objects.s3_errors import explain, status_of, surely_did_not_happen
from promptstore.store.objects import ObjectInfo

CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 32
PLAIN_ATTEMPTS = 5
BROKEN_READ_ATTEMPTS = 3
BUSY_ATTEMPTS = 12
BUSY_WAIT_S = 0.02
BUSY_LONGEST_WAIT_S = 1.0
_BROKEN_READ = (IncompleteReadError, ResponseStreamingError, ResponseParserError, HTTPError)
_FAULTS = (BotoCoreError, ClientError, ResponseParserError, HTTPError)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach a bucket; what is `None` comes from boto3's usual chain (environment, profile, instance role).

    addressing: `auto` puts the bucket into the path when there is an endpoint and into the host name on AWS.
    encryption: `AES256`, `aws:kms` or `aws:kms:<key id>`; `None` leaves it to the bucket's default.
    timeout_s: the longest silence of the server that one attempt of one request bears; a plain call has five attempts.
    profile: of AWS's shared configuration. query: what the store's URL says of all this; two servers may have buckets
    of one name.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    encryption: str | None = None
    timeout_s: float = 10.0
    profile: str | None = None
    query: str = ""


class S3ObjectStore:
    """Objects under `prefix` of `bucket`.

    Plain calls are repeated by the SDK. A create-only write never is: the SDK cannot tell a 412 that answers a repeat
    whose first try took effect from one that says somebody else was first. Reading back is the ledger's job.

    `list` keeps the server's order. AWS S3 and Ceph list by key bytes; SeaweedFS lists folder by folder, which is
    the same unless one name continues a folder's name (`a/x` and `a-b`): the store format has no such names.
    """

    def __init__(self, bucket: str, prefix: str = "", options: S3Options = S3Options()) -> None:
        if not bucket or "/" in bucket:
            raise InvalidInputError(f"bucket {bucket!r}: expected s3://bucket or s3://bucket/prefix")
        self._bucket = bucket
        self._base = f"{check_key(prefix)}/" if prefix else ""
        self._options = options
        self._encryption = _encryption(options.encryption)
        self._lock = Lock()
        self._clients: _Clients | None = None

    @property
    def url(self) -> str:
        query = f"?{self._options.query}" if self._options.query else ""
        return f"s3://{self._bucket}/{self._base}".rstrip("/") + query

    def get(self, key: str) -> bytes:
        name = self._name(key)

        def read() -> bytes:
            answer = self._plain().get_object(Bucket=self._bucket, Key=name)
            with closing(answer["Body"]) as body:  # entering the body itself would give the raw, unchecked stream
                return _read_whole(body)

        return self._call("get", key, lambda: _repeat_broken_reads(read))

    def put(self, key: str, data: bytes) -> None:
        name = self._name(key)
        self._call(
            "put",
            key,
            lambda: self._plain().put_object(Bucket=self._bucket, Key=name, Body=data, **self._encryption),
        )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        name = self._name(key)

        def create() -> None:
            self._single().put_object(Bucket=self._bucket, Key=name, Body=data, IfNoneMatch="*", **self._encryption)

        try:
            _repeat_when_busy(create)
            return True
        except _FAULTS as error:
            status = status_of(error)
            if status == 412:
                return False
            doing = f"create {self._url(key)}"
            if status == 501:
                raise UnsupportedStoreError(
                    f"cannot {doing}: {self._where()} does not know create-only writes (If-None-Match); "
                    "use a store that does: AWS S3, SeaweedFS, Ceph RGW"
                ) from error
            if surely_did_not_happen(error):
                raise StoreUnavailableError(f"cannot {doing}: {self._explain(error)}") from error
            raise CommitOutcomeUnknownError(
                f"{doing}: {self._explain(error)}; it may have been created or may be yet"
            ) from error

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        first, after = self._base + prefix, self._base + start_after
        place: dict[str, Any] = {}
        if after > first:  # below the prefix it says nothing, and SeaweedFS then lists keys without the prefix
            if not after.startswith(first):
                return
            place = {"StartAfter": after}
        while True:
            page = self._call("list", prefix, partial(self._page, first, place))
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # a folder that a console made visible
                    key = item["Key"].removeprefix(self._base)
                    yield ObjectInfo(key, item["Size"], item["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                return
            place = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._call("delete", key, lambda: self._plain().delete_object(Bucket=self._bucket, Key=name))

    def _name(self, key: str) -> str:
        return self._base + check_key(key)

    def _url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._base}{key}"

    def _page(self, name_prefix: str, place: dict[str, Any]) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            answer = self._plain().list_objects_v2(Bucket=self._bucket, Prefix=name_prefix, **place)
            return dict(answer)

        return _repeat_broken_reads(read)

    def _call(self, verb: str, key: str, send: Callable[[], Answer]) -> Answer:
        """What a repeatable request gives; its faults become ours."""
        try:
            return _repeat_when_busy(send)
        except _FAULTS as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "NoSuchKey":
                raise NotFoundError(f"{self._url(key)} does not exist") from error
            raise StoreUnavailableError(f"cannot {verb} {self._url(key)}: {self._explain(error)}") from error

    def _explain(self, error: Exception) -> str:
        return explain(error, bucket=self._bucket, where=self._where(), timeout_s=self._options.timeout_s)

    def _where(self) -> str:
        return self._options.endpoint or "AWS S3"

    def _plain(self) -> Any:
        return self._clients_of_this_process().plain

    def _single(self) -> Any:
        return self._clients_of_this_process().single

    def _clients_of_this_process(self) -> "_Clients":
        """Made at first use, and again after a fork: two processes must not share a connection."""
        clients = self._clients
        if clients is None or clients.process != os.getpid():
            with self._lock:
                clients = self._clients
                if clients is None or clients.process != os.getpid():
                    clients = self._clients = _connect(self._options)
        return clients


@dataclass(frozen=True, slots=True)
class _Clients:
    """single: never sends a request twice."""

    process: int
    plain: Any
    single: Any


def _connect(options: S3Options) -> _Clients:
    try:
        session = boto3.session.Session(profile_name=options.profile)
        return _Clients(os.getpid(), _client(session, options, PLAIN_ATTEMPTS), _client(session, options, 1))
    except ValueError as error:
        raise InvalidInputError(f"S3 endpoint {options.endpoint!r}: {error}; expected http(s)://host[:port]") from error
    except BotoCoreError as error:
        raise InvalidInputError(f"cannot set up the S3 client: {error}") from error


def _client(session: Any, options: S3Options, attempts: int) -> Any:
    addressing = options.addressing
    if addressing == "auto" and options.endpoint:
        addressing = "path"
    region = options.region or session.region_name or ("us-east-1" if options.endpoint else None)
    config = Config(
        connect_timeout=min(CONNECT_TIMEOUT_S, options.timeout_s),
        read_timeout=options.timeout_s,
        max_pool_connections=MAX_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": addressing},
        # S3-like servers refuse or corrupt the chunked trailers that the SDK sends by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        user_agent_extra="promptstore",
    )
    return session.client("s3", endpoint_url=options.endpoint, region_name=region, config=config)


def _encryption(setting: str | None) -> dict[str, str]:
    if setting is None:
        return {}
    if setting == "AES256":
        return {"ServerSideEncryption": "AES256"}
    algorithm, _, key = setting.partition("aws:kms:")
    if setting == "aws:kms" or (not algorithm and key):
        return {"ServerSideEncryption": "aws:kms"} | ({"SSEKMSKeyId": key} if key else {})
    raise InvalidInputError(f"S3 encryption {setting!r}: expected AES256, aws:kms or aws:kms:<key id>")


def _read_whole(body: Any) -> bytes:
    """All of an answer that has started; one that falls silent has broken off."""
    try:
        return bytes(body.read())
    except ReadTimeoutError as error:
        raise ResponseStreamingError(error=error) from error


def _repeat_broken_reads(read: Callable[[], Answer]) -> Answer:
    """The SDK repeats a request until the answer starts; an answer that breaks off later is repeated here.

    A server that never answers has had all its attempts by then: it must not have them three times.
    """
    for _ in range(BROKEN_READ_ATTEMPTS - 1):
        try:
            return read()
        except _BROKEN_READ as error:
            # Most of botocore's errors of sending are urllib3's as well.
            if isinstance(error, HTTPClientError) and not isinstance(error, ResponseStreamingError):
                raise
    return read()


def _repeat_when_busy(send: Callable[[], Answer]) -> Answer:
    """Repeat what the server surely did not do: 409 (a conditional write is at work on this key) and 429."""
    for attempt in range(BUSY_ATTEMPTS - 1):
        try:
            return send()
        except ClientError as error:
            if status_of(error) not in {409, 429}:
                raise
        time.sleep(random.uniform(0, min(BUSY_LONGEST_WAIT_S, BUSY_WAIT_S * 2**attempt)))  # noqa: S311 - no secret
    return send()
