"""A base model before it is loaded."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model folder on this machine, and what people call it. revision: the hub's commit, if it came from there."""

    folder: Path
    name: str
    revision: str | None = None
