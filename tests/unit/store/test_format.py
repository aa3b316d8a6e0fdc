"""FORMAT.md's worked example, byte for byte."""

import itertools
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import promptstore
from promptstore.core.checkpoint import checkpoint_to_bytes
from promptstore.core.commit import Commit
from promptstore.core.digest import sha256_hex
from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.manifest import Manifest, Provenance
from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.core.task import DataSource, TaskSpec
from promptstore.objects.memory import MemoryObjectStore
from promptstore.store.checkpoints import encode_hint
from promptstore.store.layout import HINT_KEY
from promptstore.store.ledger import Ledger
from promptstore.store.promotion import Promotion, Statement
from promptstore.store.prompt_store import PromptStore
from promptstore.store.trust import Signer, TrustPolicy
from promptstore.testing.store_samples import ticking_clock

PAGE = (Path(promptstore.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
SECRET = bytes(range(32))


def example() -> MemoryObjectStore:
    """The store that the worked example describes."""
    objects = MemoryObjectStore()
    ids = itertools.count()
    signer = Signer(Ed25519PrivateKey.from_private_bytes(SECRET))
    ledger = Ledger.create(
        objects,
        actor="ada",
        clock=ticking_clock(timedelta(minutes=1)),
        new_id=lambda: f"{next(ids):032x}",
        signer=signer,
    )
    prompts = PromptStore(ledger, objects)
    model = BaseModelFingerprint("LlamaForCausalLM", 3, "11" * 32, "22" * 32, "demo/tiny", "main")
    prompt = SoftPrompt(np.array([[0.5, -1.0, 2.0], [0.0, 1.5, -0.25]], np.float32), model)
    task = TaskSpec("echo", "generation", "Say: {text}", DataSource("train.jsonl", "validation.jsonl"))
    prompts.publish(
        prompt, task, provenance=Provenance(git_commit="abc123"), metrics={"accuracy": 0.875}, reason="first"
    )
    gate = Statement("gate", {"verdict": "pass", "accuracy": 0.875})
    prompts.release([Promotion(PromptRef("echo", number=1), statements=[gate])], reason="good enough")
    return objects


def shown(title: str) -> bytes:
    """The block of FORMAT.md below the line that names an object in back quotes."""
    found = re.search(rf"^`{re.escape(title)}`[^\n]*:\n\n```\w*\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"FORMAT.md shows no {title}"
    return found[1].encode()


OBJECTS = {info.key: example().get(info.key) for info in example().list("")}


@pytest.mark.parametrize("key", OBJECTS)
def test_the_worked_example_is_what_the_code_writes(key: str) -> None:
    if key.endswith(".safetensors"):
        assert bytes.fromhex(re.sub(rb"(?m)^\w+:|\|.*$|\s", b"", shown(key)).decode()) == OBJECTS[key]
    else:
        assert shown(key) == OBJECTS[key]


def test_the_worked_example_is_what_the_code_reads() -> None:
    objects = MemoryObjectStore()
    for key, data in OBJECTS.items():
        objects.put(key, data if key.endswith(".safetensors") else shown(key))
    trust = TrustPolicy({Signer(_key()).key: _key().public_key()})
    prompts = PromptStore(Ledger.open(objects, actor="reader", trust=trust), objects)
    pulled = prompts.pull("echo@production", for_model=None)
    assert pulled.prompt.embeddings.tolist() == [[0.5, -1.0, 2.0], [0.0, 1.5, -0.25]]
    assert pulled.manifest.metrics == {"accuracy": 0.875}


def test_checkpoint_and_hint_are_as_shown() -> None:
    objects = example()
    assert shown("checkpoint of commit 2, decompressed") == checkpoint_to_bytes(
        Ledger.open(objects, actor="reader").state
    ).rstrip(b"\n")
    assert shown(HINT_KEY) == encode_hint(100)


def test_digests_in_the_text_are_those_of_the_example() -> None:
    commit = Commit.from_bytes(OBJECTS["commits/00000000000000000001.json"], 1)
    manifest = next(data for key, data in OBJECTS.items() if key.startswith("manifests/"))
    for digest in (commit.digest, commit.parent, sha256_hex(manifest), Manifest.from_bytes(manifest).payload.digest):
        assert digest in PAGE
    assert sha256_hex(_key().public_key().public_bytes_raw()) in PAGE


def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(SECRET)
