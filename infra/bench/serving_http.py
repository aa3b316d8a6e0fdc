"""The server over HTTP: what it adds to the engine, how it refuses, and how soon it sees a promotion."""

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import quantiles

import httpx

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_clients import REFS
from infra.bench.serving_engine import COMMAND, LIMITS, TASK, Traffic, score_all
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.options import ServerOptions
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.served import SENTIMENT, LiveServer, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

TURNS = 3
SECONDS = 12.0
QUEUED = 24
OVERLOAD = 10
POLL_S = 0.1
PROMOTIONS = 10_000


def http_cost(model: FrozenModel) -> list[Measurement]:
    """CPU seconds per request of a saturated server's process against the engine's own; clients are another process."""
    traffic = Traffic(model, 20, prompts=2)
    rig = traffic.rig(model)
    engine_s = server_s = 0.0
    answered = 0
    with _served(model, queued=512) as live:
        for turn in range(TURNS):
            part = traffic.requests[turn::TURNS]
            started = time.process_time()
            score_all(rig, part, traffic.labels)
            engine_s += (time.process_time() - started) / len(part) / TURNS
            started = time.process_time()
            answers = _ask(live, "--clients", "16", "--seconds", str(SECONDS))
            server_s += time.process_time() - started
            answered += len(answers)
    name = "serving, HTTP, queueing and JSON: CPU time added to the engine's own, saturated"
    return [measured(name, server_s / answered / engine_s - 1, "", target="< 0.05", command=COMMAND)]


def overload(model: FrozenModel) -> list[Measurement]:
    """Ten times what the server can answer: what is accepted is still answered soon, the rest is told at once."""
    with _served(model, queued=QUEUED) as live:
        calm = _ask(live, "--clients", "8", "--seconds", str(SECONDS))
        capacity = len(calm) / SECONDS
        flood = _ask(live, "--rate", str(OVERLOAD * capacity), "--seconds", str(SECONDS))
    statuses = Counter(status for status, _ in flood)
    accepted = [seconds for status, seconds in flood if status == httpx.codes.OK]
    refused = [seconds for status, seconds in flood if status == httpx.codes.TOO_MANY_REQUESTS]
    bound_s = (QUEUED + 2 * LIMITS.rows) / capacity
    name = f"serving, {OVERLOAD} times overload"
    others = len(flood) - len(accepted) - len(refused)
    return [
        measured(f"{name}: capacity with 8 clients", capacity, "requests/s", command=COMMAND),
        measured(f"{name}: p99 with 8 clients", _p99([seconds for _, seconds in calm]), "s", command=COMMAND),
        measured(f"{name}: throughput kept", len(accepted) / SECONDS / capacity, "x", target=">= 0.8", command=COMMAND),
        measured(f"{name}: p99 of the answered", _p99(accepted), "s", target=f"<= {2 * bound_s:.3g}", command=COMMAND),
        measured(f"{name}: refused with 429", statuses[429] / len(flood), "", command=COMMAND),
        measured(f"{name}: neither answered nor refused", others, "requests", target="== 0", command=COMMAND),
    ]


def promotions() -> list[Measurement]:
    """Ten thousand promotions under load, on a tiny model so that the switching is what is measured.

    Every answer must be the one of the version that it names: each version's own answer is learnt before.
    """
    model = tiny_llama()
    store = new_store()
    versions = [publish_random(store, model, SENTIMENT, seed=seed).number for seed in range(4)]
    with live_server(store, model, ServerOptions(poll_s=POLL_S)) as live:
        caller = _Caller(live.url, _own_answers(live, versions))
        threads = [threading.Thread(target=caller.run) for _ in range(2)]
        for thread in threads:
            thread.start()
        late_s = _promote(store, live, versions)
        caller.stopped.set()
        for thread in threads:
            thread.join()
    name = "serving, promotions"
    return [
        measured(f"{name} under load", len(late_s), "promotions", target=f">= {PROMOTIONS}", command=COMMAND),
        measured(f"{name}: answers meanwhile", caller.answers, "answers", command=COMMAND),
        measured(f"{name}: failed or mislabelled answers", caller.wrong, "answers", target="== 0", command=COMMAND),
        measured(
            f"{name}: seen after, p99 (poll interval {POLL_S} s)",
            _p99([each for each in late_s if each > 0]),
            "s",
            target=f"< {POLL_S + 0.2:.3g}",
            command=COMMAND,
        ),
    ]


@dataclass(slots=True)
class _Caller:
    """Clients that ask until stopped. expected: each version's probabilities."""

    url: str
    expected: dict[int, dict[str, float]]
    stopped: threading.Event = field(default_factory=threading.Event)
    answers: int = 0
    wrong: int = 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stopped.is_set():
                answer = client.post("/v1/classify", json={"model": "sentiment", "input": "a great film"})
                self.answers += 1
                self.wrong += answer.status_code != httpx.codes.OK or not self._is_right(answer)

    def _is_right(self, answer: httpx.Response) -> bool:
        (result,) = answer.json()["results"]
        expected = self.expected[result["version"]]
        is_named = answer.headers["x-promptstore-version"] == f"sentiment:{result['version']}"
        return is_named and all(abs(value - expected[label]) < 1e-4 for label, value in result["probabilities"].items())


def _promote(store: PromptStore, live: LiveServer, versions: Sequence[int]) -> list[float]:
    """Promotes and, for one in a hundred, waits to see it served. Returns seconds until seen; 0 if not waited for."""
    rng = random.Random(0)  # noqa: S311 - repeatable
    seconds = []
    current = versions[-1]
    for number in range(PROMOTIONS):
        current = rng.choice([each for each in versions if each != current])
        store.promote(f"sentiment:{current}", reason="bench", force=True)
        started = time.monotonic()
        is_waited_for = number % 100 == 0
        while (
            is_waited_for and live.context.follower.table.targets["sentiment", "production"].version.number != current
        ):
            time.sleep(0.001)
        seconds.append(time.monotonic() - started if is_waited_for else 0.0)
        time.sleep(0.001)  # leaves the interpreter to the server: writer, server and clients share this process
    return seconds


def _own_answers(live: LiveServer, versions: Sequence[int]) -> dict[int, dict[str, float]]:
    found = {}
    for version in versions:
        body = {"model": f"sentiment:{version}", "input": "a great film"}
        found[version] = httpx.post(f"{live.url}/v1/classify", json=body).json()["results"][0]["probabilities"]
    return found


@contextmanager
def _served(model: FrozenModel, *, queued: int) -> Iterator[LiveServer]:
    store = new_store()
    for seed, ref in enumerate(REFS):
        publish_random(store, model, replace(TASK, name=ref), seed=seed)
    scheduler = SchedulerLimits(batch=LIMITS, queued=queued)
    with live_server(store, model, ServerOptions(scheduler=scheduler)) as live:
        yield live


def _ask(live: LiveServer, *arguments: str) -> list[tuple[int, float]]:
    command = [sys.executable, "-m", "infra.bench.serving_clients", live.url, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [(status, seconds) for status, seconds, *_ in json.loads(done.stdout)]


def _p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98]
