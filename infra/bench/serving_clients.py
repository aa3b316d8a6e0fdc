"""A process of clients: asks a server for labels, at a rate or as fast as it answers, and prints what came back."""

import argparse
import asyncio
import json
import time
from itertools import count
from typing import Any

import httpx

from infra.bench.tuning_tasks import load_split

REFS = ("first", "second")


Answered = tuple[int, float, float, str]


async def ask_for(url: str, *, seconds: float, clients: int, rate: float | None) -> list[Answered]:
    """(status, seconds, when it was sent by the system's monotonic clock, version that answered) of every request.

    rate: requests per second, sent whether or not the last was answered.
    """
    texts = [row["text"] for row in load_split("sst2", "validation")]
    numbers = count()
    answered: list[Answered] = []
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:

        async def ask() -> None:
            number = next(numbers)
            body = {"model": REFS[number % len(REFS)], "input": texts[number % len(texts)]}
            started = time.monotonic()
            answer = await http.post("/v1/classify", json=body)
            version = answer.headers.get("x-promptstore-version", "")
            answered.append((answer.status_code, time.monotonic() - started, started, version))

        async def ask_again_and_again() -> None:
            while time.monotonic() < until:
                await ask()

        async with asyncio.TaskGroup() as group:
            if rate is None:
                for _ in range(clients):
                    group.create_task(ask_again_and_again())
            while rate is not None and time.monotonic() < until:
                group.create_task(ask())
                await asyncio.sleep(1 / rate)
    return answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=None)
    given: Any = parser.parse_args()
    found = asyncio.run(ask_for(given.url, seconds=given.seconds, clients=given.clients, rate=given.rate))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
