"""The server over HTTP: what it adds to the engine, how long answers take, and what it does with too much."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_engine import score_all
from infra.bench.serving_load import (
    OK,
    TOO_MANY,
    UNAVAILABLE,
    Asked,
    Load,
    answered,
    ask,
    goodput,
    offered_rate,
    p99,
    share,
    throughput,
)
from infra.bench.serving_process import server_process
from infra.bench.serving_traffic import COMMAND, LIMITS, SOURCE, TASK, Request, Traffic, random_prompts
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import find_model
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.decoding import choose_decoding
from promptstore.settings import load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig, digest_of
from promptstore.testing.served import new_store

TURNS = 6
BUSY_S = 12.0
FLOOD_S = 15.0
# Enough to keep a batch waiting behind the one in hand, and the next one forming.
CLIENTS = 4 * LIMITS.rows
BUSY = 0.8
QUEUED = 24
OVERLOAD = 10
KEPT = 0.8
COLD = 15


def http_cost(model: FrozenModel) -> list[Measurement]:
    """Requests per second of a saturated server against the engine alone on the same texts, by turns; and latencies."""
    traffic = Traffic(model, 20, prompts=2)
    rig = traffic.rig(model)
    with demo_server(traffic) as demo:
        load = Load(demo.url, bodies_of(traffic), clients=CLIENTS, requests=len(traffic.requests))
        engine_rates, turns = [], []
        for turn in range(TURNS):
            if turn % 2:
                turns.append(ask(load))
            engine_rates.append(_engine_rate(rig, traffic.requests, traffic.labels))
            if not turn % 2:
                turns.append(ask(load))
        _require_all([each for turn in turns for each in turn])
        rates = [throughput(turn) for turn in turns]
        engine, server = _together(engine_rates), _together(rates)
        busy = ask(replace(load, clients=0, per_s=BUSY * server, requests=round(BUSY * server * BUSY_S)))
    name = "serving over HTTP"
    saturated = [each.latency_s for turn in turns for each in turn]
    return [
        measured(f"{name}: engine alone", engine, "requests/s", command=COMMAND),
        measured(f"{name}: saturated by {CLIENTS} clients", server, "requests/s", command=COMMAND),
        measured(
            f"{name}: added to the engine's time by HTTP, queueing and JSON, saturated, median of {TURNS} turns",
            median(alone / over for alone, over in zip(engine_rates, rates, strict=True)) - 1,
            "",
            target="< 0.05",
            command=COMMAND,
        ),
        measured(f"{name}: p99, saturated by {CLIENTS} clients", p99(saturated), "s", command=COMMAND),
        measured(f"{name}: offered of that, open loop", offered_rate(busy) / server, "x", command=COMMAND),
        measured(f"{name}: p99 at {BUSY:g} of it, open loop", _p99_of_answers(busy), "s", command=COMMAND),
        measured(f"{name}: failed at {BUSY:g} of it", 1 - share(busy, OK), "", target="== 0", command=COMMAND),
    ]


def cold_prompt(model: FrozenModel, num_virtual_tokens: int = 100) -> list[Measurement]:
    """Versions that a server was never asked for, by number, then again; their bytes are on its disk.

    What the first answer takes longer is the pull and the forward pass over the prompt's tokens; an engine in this
    process takes such a pass by turns with the server.
    """
    traffic = Traffic(model, num_virtual_tokens, prompts=1)
    prompts = random_prompts(model, COLD + 2, num_virtual_tokens)[1:]
    rig = EngineRig(model, choose_decoding(model)[0], {str(at): prompt for at, prompt in enumerate(prompts)})
    pulled_s = []
    with demo_server(traffic) as demo, httpx.Client(base_url=demo.url, timeout=60) as client:
        # The last, which is the newest, the server makes ready by itself.
        numbers = [demo.store.publish(prompt, replace(TASK, name=task_name(0))).number for prompt in prompts]
        client.post("/admin/refresh").raise_for_status()
        time.sleep(1.0)

        def ask_once(number: int) -> float:
            started = time.perf_counter()
            body = {"model": f"{task_name(0)}:{number}", "input": traffic.texts[0]}
            client.post("/v1/classify", json=body).raise_for_status()
            return time.perf_counter() - started

        for at, number in enumerate(numbers[:-1]):
            first_s = ask_once(number)
            started = time.perf_counter()
            rig.bank.prepared(digest_of(str(at)))
            pass_s = time.perf_counter() - started
            pulled_s.append(first_s - median(ask_once(number) for _ in range(3)) - pass_s)
    name = "serving over HTTP, a cold prompt's first answer over a warm one's, less its forward pass, median"
    return [measured(name, 1000 * median(pulled_s), "ms", target="< 50", command=COMMAND)]


def overload(model: FrozenModel) -> list[Measurement]:
    """Ten times what the server can answer: what is accepted is still answered soon, the rest is told at once.

    Requests come at times that are set beforehand, so that refusals and slow answers do not slow them down. An accepted
    request waits for at most the queue, the batch in hand and its own: the bound on p99 is that, at the throughput that
    must be kept.
    """
    traffic = Traffic(model, 20, prompts=2)
    with demo_server(traffic, "--max-queued", str(QUEUED)) as demo:
        calm = Load(demo.url, bodies_of(traffic), clients=QUEUED, requests=len(traffic.requests) // 2)
        capacity = throughput(_require_all(ask(calm)))
        flood_rate = OVERLOAD * capacity
        flood = ask(replace(calm, clients=0, per_s=flood_rate, requests=round(flood_rate * FLOOD_S)))
        after = _require_all(ask(calm))
    bound_s = (QUEUED + 2 * LIMITS.rows) / (KEPT * capacity)
    refused = [each.latency_s for each in flood if each.status in {TOO_MANY, UNAVAILABLE}]
    others = sum(each.status not in {OK, TOO_MANY, UNAVAILABLE} for each in flood)
    rows: Sequence[tuple[str, float, str, str]] = (
        (f"capacity, {QUEUED} clients", capacity, "requests/s", ""),
        ("offered, open loop", offered_rate(flood), "requests/s", ""),
        ("offered over capacity", offered_rate(flood) / capacity, "x", f">= {0.95 * OVERLOAD:g}"),
        ("goodput", goodput(flood), "answers/s", ""),
        ("goodput over capacity", goodput(flood) / capacity, "x", f">= {KEPT:g}"),
        ("p99 of the accepted", _p99_of_answers(flood), "s", f"<= {bound_s:.3g}"),
        ("p99 of the refused", p99(refused), "s", ""),
        ("refused with 429", share(flood, TOO_MANY), "", ""),
        ("refused with 503", share(flood, UNAVAILABLE), "", ""),
        ("neither answered nor refused", others, "requests", "== 0"),
        ("throughput afterwards over capacity", throughput(after) / capacity, "x", ">= 0.9"),
    )
    return [
        measured(f"serving, {OVERLOAD} times overload: {what}", value, unit, target=target, command=COMMAND)
        for what, value, unit, target in rows
    ]


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A server's URL, and the store that it follows as this process sees it."""

    url: str
    store: PromptStore


@contextmanager
def demo_server(traffic: Traffic, *flags: str) -> Iterator[DemoServer]:
    """A server of the demo's model, with each prompt of the traffic in production of a task of its own."""
    model = find_model(SOURCE, cache_dir=load_settings().cache_dir).folder
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        store = new_store(LocalObjectStore(Path(name)))
        for number, prompt in enumerate(traffic.prompts):
            task = replace(TASK, name=task_name(number))
            store.publish(prompt, task, alias="production", force=True, reason="benchmark")
        with server_process(Path(name), model, "--max-batch", str(LIMITS.rows), *flags) as url:
            yield DemoServer(url, store)


def bodies_of(traffic: Traffic) -> list[Mapping[str, Any]]:
    """The traffic's requests as clients of `demo_server` send them."""
    return [
        {"model": task_name(number), "input": text}
        for (number, _), text in zip(traffic.requests, traffic.texts, strict=True)
    ]


def task_name(number: int) -> str:
    return f"task-{number}"


def _engine_rate(rig: EngineRig, requests: Sequence[Request], labels: Sequence[int]) -> float:
    started = time.monotonic()
    return score_all(rig, requests, labels) / (time.monotonic() - started)


def _together(rates: Sequence[float]) -> float:
    """The rate over turns of equally many requests."""
    return len(rates) / sum(1 / rate for rate in rates)


def _p99_of_answers(asked: Sequence[Asked]) -> float:
    return p99([each.latency_s for each in answered(asked)])


def _require_all(asked: Sequence[Asked]) -> Sequence[Asked]:
    if failed := [each.status for each in asked if each.status != OK]:
        raise RuntimeError(f"{len(failed)} requests were not answered, with {sorted(set(failed))}; nothing is measured")
    return asked
