"""Slow results that are kept: each is computed once and read from its file from then on."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.lm.placement import choose_placement
from promptstore.store.files import write_atomically


def folder_of_device() -> str:
    """Accuracy is of a dtype, and seconds are of a device: what was measured with others is not mixed in."""
    place = choose_placement("auto", "auto")
    return f"{place.device.type}-{str(place.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, slots=True)
class KeptCell:
    """A JSON file. Delete it, or its folder, to measure again."""

    path: Path

    def kept(self) -> dict[str, Any] | None:
        """The content, if it is there."""
        if not self.path.exists():
            return None
        found: dict[str, Any] = json.loads(self.path.read_bytes())
        return found

    def get(self, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The content; computed, with its wall clock in `wall_s`, if it is not there yet."""
        if (found := self.kept()) is not None:
            return found
        print(f"{self.path.stem} …", file=sys.stderr, flush=True)
        began = time.perf_counter()
        content = compute()
        content["wall_s"] = round(time.perf_counter() - began, 1)
        write_atomically(self.path, json.dumps(content, indent=2).encode() + b"\n")
        print(f"{self.path.stem}: {content['wall_s']} s", file=sys.stderr, flush=True)
        return content
