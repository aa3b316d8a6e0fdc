"""PostgreSQL for the stack: a cluster that keeps its data, and a database for everybody who needs one."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from infra.stack.place import StackPlace, StackSettings
from infra.stack.service import Service
from promptstore.errors import InvalidInputError, PromptStoreError
from promptstore.testing.servers import group_of, postgres_programs, postgres_user

DATABASES = ("mlflow", "prefect", "catalog")
CLEAN = {"LC_ALL": "C", "PATH": os.defpath}


def postgres_service(place: StackPlace, settings: StackSettings) -> Service:
    """Raises MissingServerError: it is not installed."""
    programs, user, folder = postgres_programs(), postgres_user(), place.data("postgres")
    port = settings.ports["postgres"]
    parameters = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": 200,
    }
    flags = [part for name, value in parameters.items() for part in ("-c", f"{name}={value}")]
    return Service(
        name="postgres",
        place=place,
        address=f"postgresql://127.0.0.1:{port}",
        ports={"postgres": port},
        command=(str(programs / "postgres"), "-D", str(folder / "data"), *flags),
        environment=CLEAN,
        prepare=lambda: _make_cluster(folder, programs, user, settings.password),
        is_ready=lambda: _answers(settings),
        complete=lambda: _make_databases(settings),
        user=user,
        stop_by=signal.SIGINT,  # "fast": SIGTERM would wait until every client has left
    )


def _make_cluster(folder: Path, programs: Path, user: str | None, password: str) -> None:
    """Once: beside its place and then moved there, so that an interrupted one is never taken for whole."""
    if (folder / "data").exists():
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "password").write_text(password)
    if user is not None:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    _require_access(folder, user)
    shutil.rmtree(folder / "data.new", ignore_errors=True)
    options = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    command = [
        programs / "initdb",
        "-D",
        folder / "data.new",
        "-U",
        "promptstore",
        "-E",
        "UTF8",
        "--locale=C",
        *options,
    ]
    done = _run_as(user, [str(each) for each in command], folder)
    (folder / "password").unlink()
    if done.returncode != 0:
        raise PromptStoreError(f"initdb failed:\n{done.stdout}{done.stderr}")
    (folder / "data.new").rename(folder / "data")


def _require_access(folder: Path, user: str | None) -> None:
    if _run_as(user, ["test", "-w", str(folder)], Path("/")).returncode != 0:
        raise InvalidInputError(
            f"PostgreSQL cannot run as root, and the user {user} cannot reach {folder}: "
            "open the folders above it (chmod o+x), give another --folder, or do not work as root"
        )


def _run_as(user: str | None, command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=CLEAN,
        user=user,
        group=group_of(user),
        extra_groups=[] if user else None,
    )


def _connect(settings: StackSettings) -> "psycopg.Connection[tuple[str, ...]]":
    return psycopg.connect(
        host="127.0.0.1",
        port=settings.ports["postgres"],
        user="promptstore",
        password=settings.password,
        dbname="postgres",
        connect_timeout=3,
        autocommit=True,
    )


def _answers(settings: StackSettings) -> bool:
    try:
        _connect(settings).close()
    except psycopg.OperationalError:
        return False
    return True


def _make_databases(settings: StackSettings) -> None:
    with _connect(settings) as connection:
        existing = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in sorted(set(DATABASES) - existing):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
