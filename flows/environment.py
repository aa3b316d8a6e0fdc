"""Environments for Prefect's processes: quiet, private, and nothing sent to anybody."""

from pathlib import Path

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
}

QUIET_FLOWS = {
    **QUIET,
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "promptstore",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # What Prefect's server answers while its database is away; a run outlives the minute that a restart takes.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
# The name under which `announce` keeps its place in the log.
OUTBOX = "prefect"


def server_environment(home: Path, port: int, *, database: str | None = None) -> dict[str, str]:
    """For `python -m prefect server start --host 127.0.0.1 --port PORT`, which answers `/api/health` in about 10 s.

    home: everything the server keeps. database: a SQLAlchemy URL, such as postgresql+asyncpg://…, for anything that
    runs in parallel; SQLite in `home` otherwise, which answers "database is locked" to many writers.
    """
    environment = {
        **QUIET,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_API_URL": api_url(port),
        "PREFECT_UI_API_URL": api_url(port),
        # In memory, as by default, a server that is killed forgets who holds a slot, and the slot stays taken for good.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if database is not None:
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    return environment


def client_environment(home: Path, port: int) -> dict[str, str]:
    """For a process that runs flows against the server on `port`. home: its own settings, apart from the user's."""
    return {**QUIET_FLOWS, "PREFECT_HOME": str(home), "PREFECT_API_URL": api_url(port)}


def api_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/api"
