"""Many writers at once: what a racing thread or process does, and how often it had to try."""

import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from promptstore.objects.open import open_object_store
from promptstore.settings import load_settings
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.scripted_objects import ScriptedObjects
from promptstore.testing.store_samples import sample_prompt, sample_task


@dataclass(frozen=True, slots=True)
class Raced:
    """What one writer did. tries: how often it tried to create a commit; every try beyond its commits was lost."""

    numbers: list[int]
    digests: list[str]
    tries: int

    @property
    def conflicts(self) -> int:
        return self.tries - len(self.numbers)


def publish_many(url: str, endpoint: str | None, writer: int, count: int, start_at: float, task: str = "sst2") -> Raced:
    """Publish `count` prompts of this writer's own to one task, beginning at `start_at` (seconds since the epoch)."""
    return publish_to(open_object_store(url, load_settings(s3_endpoint=endpoint)), writer, count, start_at, task)


def publish_to(objects: ObjectStore, writer: int, count: int, start_at: float, task: str = "sst2") -> Raced:
    """As `publish_many`, to a store that this process has at hand."""
    counted = ScriptedObjects(objects)
    prompts = PromptStore(Ledger.open(counted, actor=f"writer {writer}"), counted)
    time.sleep(max(0.0, start_at - time.time()))
    versions = [prompts.publish(sample_prompt(writer * 10_000 + turn), sample_task(task)) for turn in range(count)]
    tries = sum(call.verb == "put_if_absent" and call.key.startswith("commits/") for call in counted.calls)
    return Raced([each.number for each in versions], [each.digest for each in versions], tries)


def race_threads(objects: ObjectStore, writers: int, count: int) -> list[Raced]:
    """`writers` threads, each with a ledger of its own, so that they know nothing of each other."""
    start_at = time.time() + 0.2
    with ThreadPoolExecutor(writers) as pool:
        futures = [pool.submit(publish_to, objects, writer, count, start_at) for writer in range(writers)]
        return [future.result() for future in futures]


def race_processes(url: str, endpoint: str | None, writers: int, count: int, *, warm_up_s: float) -> list[Raced]:
    """`writers` processes that share nothing but the store. warm_up_s: time for all of them to be ready."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["promptstore.testing.store_races", "promptstore.objects.s3"])
    start_at = time.time() + warm_up_s
    with ProcessPoolExecutor(writers, mp_context=context) as pool:
        futures = [pool.submit(publish_many, url, endpoint, writer, count, start_at) for writer in range(writers)]
        return [future.result() for future in futures]
