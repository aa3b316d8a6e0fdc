"""Real servers for every test that asks: started once per run, at first use."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from promptstore.testing.servers import (
    MissingServerError,
    PostgresServer,
    S3Server,
    careless_server,
    ceph_server,
    moto_server,
    postgres_server,
    seaweedfs_server,
)

# Tests with these marks run only where they are asked for: what they need takes minutes.
LEFT_OUT = {
    "ceph": "Ceph RGW (`make test-ceph`)",
    "kills": "a quarter of an hour (`make test-kills`)",
    "ray": "a Ray cluster of several nodes (`make test-ray`)",
    "vllm": "vLLM (`make test-vllm`)",
}
# Lines of tests that passed which are shown after a run, by a word in them; with the heading they get.
TOLD = {"conflicts": "races", "versions compared": "mixes"}


def pytest_configure(config: pytest.Config) -> None:
    for name, needs in LEFT_OUT.items():
        config.addinivalue_line("markers", f"{name}: needs {needs}; left out unless selected by `-m {name}`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = [name for name in LEFT_OUT if name not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How often writers really met in the race tests, and how many answers were held against the oracle's."""
    printed = {
        (report.nodeid.rpartition("::")[2], line)
        for report in terminalreporter.getreports("passed")
        for line in report.capstdout.splitlines()
    }
    for word, heading in TOLD.items():
        if told := sorted(f"{name}: {line}" for name, line in printed if word in line):
            terminalreporter.section(heading)
            for line in told:
                terminalreporter.line(line)


@pytest.fixture(scope="session")
def compiled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests leave what they compiled for each other, and for those of other processes of the run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """A real S3 server."""
    with _with_credentials(seaweedfs_server) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """An emulator of S3."""
    with _with_credentials(moto_server) as server:
        yield server


@pytest.fixture(scope="session")
def careless() -> Iterator[S3Server]:
    """A real S3 server that ignores create-only writes."""
    with _with_credentials(careless_server) as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[S3Server]:
    """Another real S3 server; only `make test-ceph` asks for it."""
    with _with_credentials(ceph_server) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    try:
        with postgres_server() as server:
            yield server
    except MissingServerError as error:
        pytest.skip(str(error))


@contextmanager
def _with_credentials(start: Callable[[], AbstractContextManager[S3Server]]) -> Iterator[S3Server]:
    try:
        with start() as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment.items():
                patch.setenv(name, value)
            yield server
    except MissingServerError as error:
        pytest.skip(str(error))
