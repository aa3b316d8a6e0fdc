"""Slow results that are kept: each cell is computed once and read from its file from then on."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.store.files import write_atomically


@dataclass(frozen=True, slots=True)
class Cells:
    """A folder of JSON files, one a cell. Delete a file, or the folder, to measure it again."""

    folder: Path

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell's content; computed, with its wall clock in `wall_s`, if it is not there yet."""
        path = self.folder / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_bytes())
            return found
        print(f"{name} …", file=sys.stderr, flush=True)
        began = time.perf_counter()
        content = compute()
        content["wall_s"] = round(time.perf_counter() - began, 1)
        write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")
        print(f"{name}: {content['wall_s']} s", file=sys.stderr, flush=True)
        return content
