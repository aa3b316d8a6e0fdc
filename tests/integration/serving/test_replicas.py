"""Replicas share nothing but the store."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from promptstore.objects.local import LocalObjectStore
from promptstore.serving.options import ServerOptions
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.served import SENTIMENT, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

POLL_S = 0.05
# Poll interval, and what a busy machine may add: measured exactly in `make bench`, bounded generously here.
BOUND_S = POLL_S + 5.0


def test_two_replicas_switch_within_the_bound_and_clients_of_both_never_fail(tmp_path: Path) -> None:
    objects = LocalObjectStore(tmp_path / "store")
    writer, model = new_store(objects), tiny_llama()
    publish_random(writer, model, SENTIMENT, seed=1)
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(
                live_server(
                    PromptStore(Ledger.open(objects, actor=f"replica-{number}"), objects),
                    tiny_llama(),
                    ServerOptions(poll_s=POLL_S),
                )
            )
            for number in range(2)
        ]
        stopped, statuses = threading.Event(), []

        def ask() -> None:
            with httpx.Client(timeout=30) as client:
                while not stopped.is_set():
                    for replica in replicas:
                        body = {"model": "sentiment", "input": "x"}
                        statuses.append(client.post(f"{replica.url}/v1/classify", json=body).status_code)

        caller = threading.Thread(target=ask)
        caller.start()
        waits = []
        for seed in range(2, 7):
            version = publish_random(writer, model, SENTIMENT, seed=seed)
            promoted_at = time.monotonic()
            while not all(
                replica.context.follower.table.targets["sentiment", "production"].version.number == version.number
                for replica in replicas
            ):
                assert time.monotonic() - promoted_at < BOUND_S
                time.sleep(0.002)
            waits.append(time.monotonic() - promoted_at)
        stopped.set()
        caller.join()
    print(f"both replicas switched within {max(waits):.3f} s")
    assert set(statuses) == {200}
