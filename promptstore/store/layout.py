"""Where each object of a store is. See FORMAT.md, section 2."""

import re
from dataclasses import dataclass
from typing import Literal

HEADER_KEY = "store.json"
HINT_KEY = "checkpoints/latest.json"
COMMITS = "commits/"
CHECKPOINTS = "checkpoints/"
PAYLOADS = "payloads/"
MANIFESTS = "manifests/"
CLOCK = "clock/"
QUARANTINE = "quarantine/"

BlobKind = Literal["payload", "manifest"]
_BLOB = re.compile(r"(payloads|manifests)/([0-9a-f]{2})/([0-9a-f]{64})(?:-([1-9][0-9]{0,19}))?\.(safetensors|json)")
_COMMIT = re.compile(r"commits/([0-9]{20})\.json")
_CHECKPOINT = re.compile(r"checkpoints/([0-9]{20})\.json\.zst")


@dataclass(frozen=True, slots=True)
class BlobKey:
    """The place of a payload or manifest.

    generation: number of the last commit that condemned the digest before these bytes were written, 0 if none.
    """

    kind: BlobKind
    digest: str
    generation: int = 0

    def __str__(self) -> str:
        folder, ending = ("payloads", "safetensors") if self.kind == "payload" else ("manifests", "json")
        generation = f"-{self.generation}" if self.generation else ""
        return f"{folder}/{self.digest[:2]}/{self.digest}{generation}.{ending}"

    @classmethod
    def parse(cls, key: str) -> "BlobKey | None":
        """The blob that `key` is the place of; `None` for any other key."""
        found = _BLOB.fullmatch(key)
        if not found:
            return None
        blob = cls("payload" if found[1] == "payloads" else "manifest", found[3], int(found[4] or 0))
        return blob if str(blob) == key else None


def commit_key(number: int) -> str:
    return f"{COMMITS}{number:020}.json"


def commit_number(key: str) -> int | None:
    """The number of the commit that `key` is the place of; `None` for any other key."""
    found = _COMMIT.fullmatch(key)
    return int(found[1]) if found else None


def checkpoint_key(number: int) -> str:
    return f"{CHECKPOINTS}{number:020}.json.zst"


def checkpoint_number(key: str) -> int | None:
    """The number of the checkpoint that `key` is the place of; `None` for any other key."""
    found = _CHECKPOINT.fullmatch(key)
    return int(found[1]) if found else None
