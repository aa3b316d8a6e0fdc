"""SeaweedFS for the stack: a bucket for the store, and one for MLflow's artifacts."""

import os
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.stack.place import StackPlace, StackSettings
from infra.stack.service import Service
from promptstore.testing.servers import weed_command

REGION = "us-east-1"
STORE_BUCKET, ARTIFACT_BUCKET = "promptstore", "mlflow"


def s3_service(place: StackPlace, settings: StackSettings) -> Service:
    """Raises MissingServerError: it is not installed."""
    folder = place.data("s3")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = cache(partial(_client, settings))  # one for all tries: making it takes longer than the pause between two
    return Service(
        name="s3",
        place=place,
        address=settings.url("s3"),
        ports=settings.weed_ports,
        command=weed_command(folder, settings.weed_ports, settings.access_key, settings.secret_key),
        environment={"PATH": os.defpath, "HOME": str(folder)},
        is_ready=lambda: _takes_writes(client()),
    )


def credentials(settings: StackSettings) -> dict[str, str]:
    """What makes boto3 in another process use the stack's keys and nobody else's."""
    return {
        "AWS_ACCESS_KEY_ID": settings.access_key,
        "AWS_SECRET_ACCESS_KEY": settings.secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _takes_writes(client: Any) -> bool:
    """Whether both buckets can be written: the port answers before the server behind it can store anything."""
    for bucket in (STORE_BUCKET, ARTIFACT_BUCKET):
        try:
            client.create_bucket(Bucket=bucket)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except (BotoCoreError, ClientError):
            return False
        try:
            client.put_object(Bucket=bucket, Key=".ready", Body=b"x")
            client.delete_object(Bucket=bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            return False
    return True


def _client(settings: StackSettings) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.url("s3"),
        aws_access_key_id=settings.access_key,
        aws_secret_access_key=settings.secret_key,
        region_name=REGION,
        config=Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=10
        ),
    )
