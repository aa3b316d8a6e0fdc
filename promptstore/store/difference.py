"""How two versions differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from promptstore.core.digest import parse_json
from promptstore.core.manifest import Manifest
from promptstore.core.prompt import SoftPrompt


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same. path: dotted, as in `task.template`; `None` where a side has no such thing."""

    path: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "before": self.before, "after": self.after}


def manifest_differences(before: Manifest, after: Manifest) -> Iterator[Difference]:
    """Every leaf of the two manifests that differs, in order of path."""
    yield from _differences("", parse_json(before.to_bytes(), "manifest"), parse_json(after.to_bytes(), "manifest"))


def tensor_differences(before: SoftPrompt, after: SoftPrompt) -> Iterator[Difference]:
    """How far two prompts of one shape lie apart, as `embeddings.…`; nothing if they are equal or of other shapes."""
    if before.embeddings.shape != after.embeddings.shape or np.array_equal(before.embeddings, after.embeddings):
        return
    old, new = before.embeddings.astype(np.float64), after.embeddings.astype(np.float64)
    yield Difference("embeddings.largest_change", 0.0, float(np.abs(new - old).max()))
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    if norms.all():
        yield Difference("embeddings.mean_cosine", 1.0, float(((old * new).sum(axis=1) / norms).mean()))


def _differences(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _differences(f"{path}.{name}" if path else name, before.get(name), after.get(name))
    elif before != after:
        yield Difference(path, before, after)
