"""Ceph RGW: a second, older S3 server to check against. One monitor, one OSD in memory, one gateway; no authentication
between them, no manager. Takes some seconds and about a gigabyte of memory."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from promptstore.loopback import free_port
from promptstore.testing.servers.process import MissingServerError, ServerProcess, program
from promptstore.testing.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server, ready

INSTALL = "apt-get install radosgw ceph-mon ceph-osd ceph-common"
SETTINGS = """
[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{monitor_port}]
auth cluster required = none
auth service required = none
auth client required = none
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
ms mon client mode = crc secure
run dir = {folder}
crash dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
log to stderr = false
mon cluster log file = {folder}/cluster.log
pid file =
osd class dir = {classes}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
mon data = {folder}/mon
mon allow pool size one = true
mon data avail crit = 0
paxos propose interval = 0.02
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw run sync thread = false
rgw enable quota threads = false
rgw dynamic resharding = false
"""


@contextmanager
def ceph_server() -> Iterator[S3Server]:
    """A gateway with one bucket.

    Raises:
        MissingServerError: Ceph's programs are not installed.
    """
    for name in ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "monmaptool"):
        program(name, INSTALL)
    with tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as name, ExitStack() as started:
        cluster = _Cluster(Path(name), started)
        cluster.start_monitor()
        cluster.start_osd()
        yield ready("ceph", cluster.port, cluster.start_gateway())


class _Cluster:
    def __init__(self, folder: Path, started: ExitStack) -> None:
        self.port = free_port()
        self._folder = folder
        self._started = started
        self._id = str(uuid4())
        self._monitor = f"[v2:127.0.0.1:{free_port()}]"
        monitor_port = self._monitor.rpartition(":")[2].rstrip("]")
        places = {"folder": folder, "classes": _object_classes(), "port": self.port, "monitor_port": monitor_port}
        (folder / "ceph.conf").write_text(SETTINGS.format(cluster=self._id, **places))
        for each in ("mon", "osd", "rgw"):
            (folder / each).mkdir()

    def start_monitor(self) -> None:
        monitors = str(self._folder / "monitors")
        self._run("monmaptool", "--create", "--fsid", self._id, "--addv", "a", self._monitor, monitors)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self._start("ceph-mon", "-i", "a", "-f")

    def start_osd(self) -> None:
        osd = str(uuid4())
        self._run("ceph", "--connect-timeout", "30", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        process = self._start("ceph-osd", "-i", "0", "-f")
        process.wait_until(lambda: '"num_up_osds":1' in self._run("ceph", "osd", "stat", "-f", "json"))

    def start_gateway(self) -> ServerProcess:
        keys = ("--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
        self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        return self._start("radosgw", "-n", "client.rgw", "-f")

    def _start(self, name: str, *arguments: str) -> ServerProcess:
        command = [str(program(name, INSTALL)), "-c", str(self._folder / "ceph.conf"), *arguments]
        process = ServerProcess(command, log=self._folder / f"{name}.out", environment={"PATH": os.defpath})
        self._started.callback(process.kill)
        return process

    def _run(self, name: str, *arguments: str) -> str:
        configured = [] if name == "monmaptool" else ["-c", str(self._folder / "ceph.conf")]
        command = [str(program(name, INSTALL)), *configured, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def _object_classes() -> Path:
    for found in Path("/usr/lib").glob("**/rados-classes/libcls_rgw.so"):
        return found.parent
    raise MissingServerError(f"Ceph's object classes are not installed: {INSTALL}")
