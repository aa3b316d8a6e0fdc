"""Real servers on loopback, started for a test run and gone with it."""

from promptstore.testing.servers.ceph import ceph_server
from promptstore.testing.servers.postgres import PostgresServer, postgres_programs, postgres_server, postgres_user
from promptstore.testing.servers.process import MissingServerError, ServerProcess, group_of
from promptstore.testing.servers.ray import RayCluster, RayNode, ray_cluster
from promptstore.testing.servers.s3 import (
    WEED_PORTS,
    S3Server,
    careless_server,
    moto_server,
    seaweedfs_server,
    weed_command,
)

__all__ = [
    "WEED_PORTS",
    "MissingServerError",
    "PostgresServer",
    "RayCluster",
    "RayNode",
    "S3Server",
    "ServerProcess",
    "careless_server",
    "ceph_server",
    "group_of",
    "moto_server",
    "postgres_programs",
    "postgres_server",
    "postgres_user",
    "ray_cluster",
    "seaweedfs_server",
    "weed_command",
]
