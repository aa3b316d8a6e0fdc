"""The clients of the serving benchmarks: what they ask, when, and what they make of answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.bench.serving_clients import run
from infra.bench.serving_load import (
    Asked,
    Clients,
    Load,
    ask,
    goodput,
    offered_rate,
    p99,
    share,
    throughput,
)
from promptstore.testing.listening import listening

BODIES: list[Mapping[str, Any]] = [{"model": "task", "input": "x"}]


class Answers:
    """An app that answers as a server does. In flight: how many requests it has not answered yet."""

    def __init__(self, until: Callable[["Answers"], bool] = lambda _: True) -> None:
        self.until = until
        self.came = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        async with self._changed:
            self.came += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self.until(self))
        yield
        self.in_flight -= 1

    async def __call__(self, request: Request) -> Response:
        told = (await request.json())["input"]
        async with self.counted():
            if told == "refuse":
                return JSONResponse({"error": {}}, 429)
            version = 8 if told == "disagree" else 7
            result = {"task": "task", "version": version, "probabilities": {"yes": 0.75}}
            return JSONResponse({"results": [result]}, headers={"x-promptstore-version": "task:7"})


def app(answers: Answers) -> Starlette:
    return Starlette(routes=[Route("/v1/classify", answers.__call__, methods=["POST"])])


def asked(due_s: float, sent_s: float, done_s: float, status: int = 200) -> Asked:
    return Asked(due_s, sent_s, done_s, status, "task:1", {}, 0)


def test_an_open_loop_waits_for_no_answer() -> None:
    """The app answers nobody before all have asked: clients that waited for answers would never be done."""
    answers = Answers(until=lambda app: app.came == 40)
    with listening(app(answers)) as url:
        load = Load(url, BODIES, per_s=400, requests=40)
        done = asyncio.run(asyncio.wait_for(run(load, asyncio.Event()), timeout=60))
    assert [each.status for each in done] == [200] * 40
    due = sorted(each.due_s for each in done)
    assert [at - due[0] for at in due] == pytest.approx([number / 400 for number in range(40)])
    assert all(each.sent_s >= each.due_s for each in done)


def test_a_closed_loop_has_no_more_requests_out_than_clients() -> None:
    answers = Answers()
    with listening(app(answers)) as url:
        done = ask(Load(url, BODIES, clients=3, requests=30))
    assert (len(done), answers.came, share(done, 200)) == (30, 30, 1.0)
    assert answers.most_in_flight <= 3


def test_clients_without_an_end_stop_when_told() -> None:
    answers = Answers()
    with listening(app(answers)) as url:
        clients = Clients(Load(url, BODIES, clients=2))
        while answers.came < 5:
            time.sleep(0.01)
        done = clients.end()
    assert len(done) == answers.came >= 5


def test_refusals_disagreeing_versions_and_cut_connections_are_told_apart() -> None:
    bodies = [{"model": "task", "input": told} for told in ("x", "refuse", "disagree")]
    with listening(app(Answers())) as url:
        done = ask(Load(url, bodies, clients=1, requests=3))
    assert [(each.status, each.version, dict(each.probabilities)) for each in done] == [
        (200, "task:7", {"yes": 0.75}),
        (429, "", {}),
        (200, "", {"yes": 0.75}),
    ]
    (gone,) = ask(Load(url, BODIES, clients=1, requests=1))
    assert gone.status == 0


def test_a_request_waits_from_when_it_was_due() -> None:
    assert asked(1.0, 1.5, 2.0).latency_s == 1.0


def test_goodput_counts_what_was_answered_while_requests_came() -> None:
    flood = [asked(at / 10, at / 10, at / 10 + 0.25, 200 if at % 2 == 0 else 429) for at in range(11)]
    assert offered_rate(flood) == pytest.approx(10.0)
    assert share(flood, 429) == pytest.approx(5 / 11)
    # Sent from 0 to 1 s: the answers to those of 0.8 and 1 s came later.
    assert goodput(flood) == pytest.approx(4.0)
    assert throughput(flood) == pytest.approx(6 / 1.25)


def test_nothing_measured_is_no_percentile() -> None:
    assert p99([float(value) for value in range(101)]) == pytest.approx(99.0)
    assert p99([3.0]) == 3.0
    with pytest.raises(RuntimeError, match="void"):
        p99([])
