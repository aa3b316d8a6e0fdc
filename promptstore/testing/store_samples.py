"""Small prompts, tasks and stores for tests that need some and do not care which."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Unpack

import numpy as np

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.store.ledger import Ledger, LedgerOptions
from promptstore.store.objects import ObjectStore
from promptstore.store.patience import Patience
from promptstore.store.prompt_store import PromptStore

IMPATIENT = Patience(sleep=lambda _: None)
START = datetime(2026, 1, 1, tzinfo=UTC)


def sample_fingerprint(hidden_size: int = 4, *, model: str = "tiny") -> BaseModelFingerprint:
    """A model that nobody has; two names give two identities."""
    digest = model.encode().hex().ljust(64, "0")[:64]
    return BaseModelFingerprint("TinyForCausalLM", hidden_size, digest, "0" * 64, model)


def sample_prompt(seed: int = 0, *, num_virtual_tokens: int = 2, hidden_size: int = 4) -> SoftPrompt:
    """A prompt that only this seed gives."""
    values = np.random.default_rng(seed).standard_normal((num_virtual_tokens, hidden_size), dtype=np.float32)
    return SoftPrompt(values, sample_fingerprint(hidden_size))


def sample_task(name: str = "sst2") -> TaskSpec:
    return TaskSpec(
        name=name,
        kind="classification",
        template="Review: {text}\nSentiment:",
        data=DataSource("train.jsonl", "validation.jsonl"),
        labels=(Label("negative", " bad"), Label("positive", " good")),
    )


def ticking_clock(step: timedelta = timedelta(seconds=1)) -> Callable[[], datetime]:
    """A clock that moves by `step` each time it is read, from the first second of 2026."""
    ticks = itertools.count(1)
    return lambda: START + next(ticks) * step


def sample_store(objects: ObjectStore, *, actor: str = "tester", **options: Unpack[LedgerOptions]) -> PromptStore:
    """A store in `objects`, made if there is none, whose retries do not sleep."""
    options.setdefault("patience", IMPATIENT)
    return PromptStore(Ledger.create(objects, actor=actor, **options), objects)


def reopened(objects: ObjectStore) -> PromptStore:
    """The same store as another process has it."""
    return PromptStore(Ledger.open(objects, actor="other", patience=IMPATIENT), objects)


def publish_samples(prompts: PromptStore, count: int = 1, task: str = "sst2") -> None:
    """The task's next `count` versions, each another prompt."""
    first = len(prompts.state.tasks[task].versions) if task in prompts.state.tasks else 0
    for seed in range(first, first + count):
        prompts.publish(sample_prompt(seed), sample_task(task))


def aliases_of(prompts: PromptStore, task: str = "sst2") -> dict[str, int]:
    return dict(prompts.state.task(task).aliases)
