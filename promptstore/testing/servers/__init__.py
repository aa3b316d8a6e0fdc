"""Real servers on loopback, started for a test run and gone with it."""

from promptstore.testing.servers.ceph import ceph_server
from promptstore.testing.servers.postgres import PostgresServer, postgres_server
from promptstore.testing.servers.process import MissingServerError, ServerProcess, free_port
from promptstore.testing.servers.s3 import S3Server, careless_server, moto_server, seaweedfs_server

__all__ = [
    "MissingServerError",
    "PostgresServer",
    "S3Server",
    "ServerProcess",
    "careless_server",
    "ceph_server",
    "free_port",
    "moto_server",
    "postgres_server",
    "seaweedfs_server",
]
