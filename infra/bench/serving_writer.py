"""A process that promotes: `Orders` are the first line of its input; prints when each promotion was done."""

import json
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from promptstore.core.prompt import SoftPrompt
from promptstore.objects.local import LocalObjectStore
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore, PulledPrompt


@dataclass(frozen=True, slots=True)
class Orders:
    """store: its folder. per_s: promotions a second, at times that are set beforehand.

    ahead: 0 promotes the versions there are, in turn. Otherwise every promotion is of a new version, published that
    many promotions earlier.
    """

    store: str
    task: str
    promotions: int
    per_s: float
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Promoted:
    """One promotion. Times are the system's monotonic clock. done_s: it is durable. commit: that made it."""

    begun_s: float
    done_s: float
    number: int
    commit: int


def promote_all(store: PromptStore, orders: Orders) -> list[Promoted]:
    """Carries out `orders`; a promotion that is late makes no other late."""
    pattern = store.pull(f"{orders.task}:1", for_model=None)
    numbers = [each.number for each in store.state.tasks[orders.task].versions]
    numbers = numbers[1:] + numbers[:1] if orders.ahead == 0 else []
    done = []
    start_s = time.monotonic()
    for turn in range(-orders.ahead, orders.promotions):
        time.sleep(max(0.0, start_s + (turn + orders.ahead) / orders.per_s - time.monotonic()))
        if turn >= 0:
            begun_s = time.monotonic()
            version = store.promote(f"{orders.task}:{numbers[turn % len(numbers)]}", reason="benchmark", force=True)
            done.append(Promoted(begun_s, time.monotonic(), version.number, store.state.number))
        if orders.ahead:
            numbers.append(_publish_like(store, pattern, len(numbers)))
    return done


def _publish_like(store: PromptStore, pattern: PulledPrompt, seed: int) -> int:
    """A new version as long and as large as `pattern`, of other numbers."""
    given = pattern.prompt.embeddings
    drawn = np.random.default_rng(seed).normal(0.0, float(given.std()), given.shape).astype(np.float32)
    return store.publish(
        SoftPrompt(drawn, pattern.prompt.fingerprint), pattern.manifest.task, reason="benchmark"
    ).number


def main() -> None:
    orders = Orders(**json.loads(sys.stdin.readline()))
    objects = LocalObjectStore(Path(orders.store))
    store = PromptStore(Ledger.open(objects, actor="writer"), objects)
    json.dump([astuple(each) for each in promote_all(store, orders)], sys.stdout)


if __name__ == "__main__":
    main()
