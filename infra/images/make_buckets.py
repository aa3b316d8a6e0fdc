"""Makes the S3 buckets it is given, unless they exist; PROMPTSTORE_S3_ENDPOINT names the server."""

import os
import sys

import boto3


def main() -> None:
    client = boto3.client("s3", endpoint_url=os.environ.get("PROMPTSTORE_S3_ENDPOINT"))
    existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in existing:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    main()
