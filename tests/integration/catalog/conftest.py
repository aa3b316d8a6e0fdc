from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> NewDatabase:
    """Makes empty databases, one URL at a time."""
    if request.param == "postgresql":
        new: NewDatabase = request.getfixturevalue("postgres").new_database
        return new
    return lambda: f"sqlite:///{tmp_path / 'sql' / uuid4().hex}.db"
