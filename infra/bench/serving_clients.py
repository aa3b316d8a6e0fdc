"""A process of clients: reads a `Load` as the first line of its input, says `asking`, asks, and prints what came of it.

A load without an end goes on until the input is closed.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple
from itertools import count

import aiohttp

from infra.bench.serving_load import NO_ANSWER, OK, Asked, Load

_JSON = {"content-type": "application/json"}


async def run(load: Load, stopped: asyncio.Event) -> list[Asked]:
    """Asks until the load's end, or until stopped; then waits for the answers that are still to come."""
    asked: list[Asked] = []
    numbers = count() if load.requests is None else iter(range(load.requests))
    # The clients share the machine's cores with the server: what they cost, it has not.
    bodies = [json.dumps(body).encode() for body in load.bodies]
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    http = aiohttp.ClientSession(load.url, connector=connector, timeout=timeout, headers=_JSON)
    async with http, asyncio.TaskGroup() as group:

        async def ask(number: int, due_s: float) -> None:
            asked.append(await _ask(http, bodies, number % len(bodies), due_s))

        async def ask_again_and_again() -> None:
            for number in numbers:
                if stopped.is_set():
                    return
                await ask(number, time.monotonic())

        async def ask_at_rate() -> None:
            """Each request has its own time, reckoned from the start: one that is late makes no other late."""
            start_s = time.monotonic()
            for number in numbers:
                due_s = start_s + number / load.per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if stopped.is_set():
                    return
                group.create_task(ask(number, due_s))

        for _ in range(load.clients):
            group.create_task(ask_again_and_again())
        if not load.clients:
            await ask_at_rate()
    return asked


async def _ask(http: aiohttp.ClientSession, bodies: Sequence[bytes], body: int, due_s: float) -> Asked:
    sent_s = time.monotonic()
    try:
        async with http.post("/v1/classify", data=bodies[body]) as answer:
            told = await answer.read()
    except (aiohttp.ClientError, TimeoutError):
        return Asked(due_s, sent_s, time.monotonic(), NO_ANSWER, "", {}, body)
    done_s = time.monotonic()
    if answer.status != OK:
        return Asked(due_s, sent_s, done_s, answer.status, "", {}, body)
    (result,) = json.loads(told)["results"]
    return Asked(due_s, sent_s, done_s, OK, _version(answer, result), result["probabilities"], body)


def _version(answer: aiohttp.ClientResponse, result: dict[str, object]) -> str:
    told = f"{result['task']}:{result['version']}"
    return told if answer.headers["x-promptstore-version"] == told else ""


async def _read_and_run() -> list[Asked]:
    load = Load(**json.loads(sys.stdin.readline()))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    if load.requests is None:

        def wait_for_the_end() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(stopped.set)

        threading.Thread(target=wait_for_the_end, daemon=True).start()
    print("asking", flush=True)
    return await run(load, stopped)


def main() -> None:
    asked = asyncio.run(_read_and_run())
    json.dump([astuple(each) for each in asked], sys.stdout)


if __name__ == "__main__":
    main()
