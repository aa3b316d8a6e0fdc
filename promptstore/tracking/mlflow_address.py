"""What an MLflow address means for us: where its artifacts go, and how it may be shown."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from promptstore.errors import InvalidInputError

DATABASES = ("postgresql", "mysql", "mssql")


def default_artifact_root(uri: str) -> str | None:
    """Where artifacts go when nobody says: beside a SQLite file; `None` where an MLflow server decides.

    MLflow's own default for a database is a folder under wherever the process happens to run.
    """
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return (Path(unquote(parts.path)[1:]).resolve().parent / "artifacts").as_uri()
    if parts.scheme.startswith(DATABASES):
        raise InvalidInputError(
            f"{without_password(uri)} is a database, so artifacts need a place of their own: "
            "give an artifact root (s3://…, file:///…), or the address of an MLflow server"
        )
    return None


def without_password(uri: str) -> str:
    """`uri` as it may be shown."""
    parts = urlsplit(uri)
    return uri if parts.password is None else uri.replace(f":{parts.password}@", ":***@", 1)
