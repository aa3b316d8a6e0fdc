"""What a request may cost, and what is said about it."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch
from prometheus_client.core import Metric
from starlette.types import Receive, Scope, Send

from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.connections import patient_protocol
from promptstore.serving.middleware import BodyLimits, JsonFormatter
from promptstore.serving.options import ServerOptions
from promptstore.testing.described import Described
from promptstore.testing.listening import listening
from promptstore.testing.served import LiveServer, live_server, store_of

SMALL = BodyLimits(body_bytes=10_000, receive_s=0.3)
ASK = {"model": "sentiment", "input": "x"}


@pytest.fixture(scope="module")
def bounded(model: FrozenModel) -> Iterator[LiveServer]:
    options = ServerOptions(poll_s=60, parallel_batches=1, scheduler=SchedulerLimits(queued=8, wait_s=0.0))
    with live_server(store_of(model), model, options, body=SMALL) as live:
        yield live


def _raw(live: LiveServer, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """Sends bytes as they are and reads until the server closes or falls silent."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(data)
        received = b""
        try:
            while part := connection.recv(65536):
                received += part
                if b'"error"' in received:
                    break
        except TimeoutError:
            pass
        return received


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(bounded: LiveServer) -> None:
    head = (
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10485760\r\n\r\n"
    )
    answer = _raw(bounded, head)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_a_body_that_turns_out_too_large_is_refused_while_it_arrives(bounded: LiveServer) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    answer = httpx.post(f"{bounded.url}/v1/classify", content=endless())
    assert answer.status_code == 413


def test_clients_that_send_ten_megabytes_are_told_what_is_wrong(bounded: LiveServer) -> None:
    text = "x" * 10_000_000
    answer = httpx.post(f"{bounded.url}/v1/classify", json={"model": "sentiment", "input": text}, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    api = openai.OpenAI(base_url=f"{bounded.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.APIStatusError, match="the body is larger than 10000 bytes") as told:
        api.completions.create(model="answer", prompt=text)
    assert told.value.status_code == 413


def test_a_body_that_arrives_too_slowly_is_given_up(bounded: LiveServer) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    answer = _raw(bounded, head)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_connection_whose_headers_come_too_slowly_is_closed(bounded: LiveServer) -> None:
    host, _, port = bounded.url.removeprefix("http://").partition(":")
    for start in (b"", b"GET /healthz HTTP/1.1\r\nhost: "):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(start)
            assert connection.recv(100) == b""


def test_headers_without_end_are_refused_and_the_body_of_an_early_answer_is_no_header(bounded: LiveServer) -> None:
    line = b"x-filler: " + b"x" * 4000 + b"\r\n"
    answer = _raw(bounded, b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + 20 * line)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
    assert _raw(bounded, b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + 10 * line + b"\r\n", wait_s=1.0).startswith(
        b"HTTP/1.1 200 "
    )
    with httpx.Client(base_url=bounded.url) as client:
        assert client.post("/v1/classify", content=iter([b"x" * 200_000] * 20)).status_code == 413


def test_a_connection_that_is_kept_alive_outlasts_the_bound_on_headers(bounded: LiveServer) -> None:
    with httpx.Client(base_url=bounded.url) as client:
        for _ in range(2):
            assert client.get("/healthz").status_code == 200
            time.sleep(1.5 * SMALL.receive_s)


def test_a_client_that_takes_nothing_of_its_answer_is_dropped_and_one_that_takes_its_time_is_not() -> None:
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body"})
        ended.set()

    with listening(app, http=patient_protocol(1.0)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            for _ in range(4):
                time.sleep(0.5)
                taken = 0
                while taken < 3_000_000:
                    taken += len(connection.recv(65536))
            assert not ended.is_set()
            assert ended.wait(20)


def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_are_served(model: FrozenModel) -> None:
    with live_server(store_of(model), model, body=BodyLimits(connections=2)) as live:
        host, _, port = live.url.removeprefix("http://").partition(":")
        address = (host, int(port))
        with socket.create_connection(address, timeout=20), httpx.Client(base_url=live.url) as client:
            assert client.get("/healthz").status_code == 200
            with socket.create_connection(address, timeout=20) as third, contextlib.suppress(ConnectionResetError):
                assert third.recv(100) == b""
            assert client.get("/healthz").status_code == 200


def test_a_client_that_does_not_read_its_stream_holds_up_nobody(bounded: LiveServer) -> None:
    body = json.dumps({"model": "answer", "prompt": "who ?", "max_tokens": 60, "stream": True, "logprobs": 20})
    host, _, port = bounded.url.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(f"{head}content-type: application/json\r\n\r\n{body}".encode())
        connection.recv(10)
        _wait_until(lambda: bounded.context.scheduler.running == 0)
        assert httpx.post(f"{bounded.url}/v1/classify", json=ASK, timeout=60).status_code == 200
    _wait_until(lambda: _holds(bounded) == 0)


def test_a_client_that_leaves_before_its_answer_costs_no_batch(bounded: LiveServer) -> None:
    metrics, hold = bounded.context.metrics, threading.Event()
    read = bounded.context.bank.counts.total()
    bounded.context.scheduler.call(lambda: hold.wait(60))
    body = {"model": "answer", "prompt": "who ?", "max_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{bounded.url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.3))
    left = 'promptstore_http_requests_total{route="/v1/completions",status="499"} 1.0'
    _wait_until(lambda: left in metrics.render().decode())
    assert _holds(bounded) == 0
    hold.set()
    _wait_until(lambda: bounded.context.scheduler.queued == bounded.context.scheduler.running == 0)
    assert bounded.context.bank.counts.total() == read


def _holds(live: LiveServer) -> int:
    return sum(entry.holds for entry in list(live.context.bank._entries.values()))


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_queue_answers_429_at_once_and_the_rest_is_answered(bounded: LiveServer) -> None:
    # The engine is held, so that what is sent piles up; then it goes on.
    hold = threading.Event()
    bounded.context.scheduler.call(lambda: hold.wait(10))
    with ThreadPoolExecutor(20) as pool, httpx.Client(base_url=bounded.url, timeout=30) as client:
        asked = [pool.submit(client.post, "/v1/classify", json=ASK) for _ in range(20)]
        deadline = time.monotonic() + 10
        while sum(each.done() for each in asked) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        hold.set()
        answers = [each.result() for each in asked]
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 8 + [429] * 12
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"


@pytest.fixture
def full(bounded: LiveServer) -> Iterator[LiveServer]:
    """Its queue takes nothing more until the test ends."""
    hold = threading.Event()
    scheduler = bounded.context.scheduler
    held = scheduler.call(lambda: hold.wait(30))
    with httpx.Client(base_url=bounded.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/classify", json={**ASK, "input": ["x"] * 8})
        _wait_until(lambda: scheduler.queued == 8)
        yield bounded
        hold.set()
        assert waiting.result().status_code == 200
    assert held.result()


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/completions", "/v1/chat/completions"])
def test_a_full_queue_refuses_before_anything_is_read(full: LiveServer, path: str) -> None:
    answer = httpx.post(f"{full.url}{path}", content=b"{ not JSON")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
    text = httpx.get(f"{full.url}/metrics").text
    assert f'promptstore_http_requests_total{{route="{path}",status="429"}}' in text


def test_what_needs_no_engine_is_answered_while_the_queue_is_full(full: LiveServer) -> None:
    assert httpx.get(f"{full.url}/v1/models").status_code == 200
    assert httpx.get(f"{full.url}/v1/classify").status_code == 405


def test_a_request_of_more_texts_than_the_queue_takes_is_refused_whole(bounded: LiveServer) -> None:
    answer = httpx.post(f"{bounded.url}/v1/classify", json={**ASK, "input": ["x"] * 9})
    assert answer.status_code == 429
    assert bounded.context.scheduler.queued == 0


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_place(bounded: LiveServer) -> None:
    body = {"model": "answer", "prompt": "who ?", "max_tokens": 400, "stream": True}
    with (
        httpx.Client(base_url=bounded.url) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        next(answer.iter_lines())

    _wait_until(lambda: bounded.context.scheduler.running == 0 and _holds(bounded) == 0)


def test_a_request_keeps_the_id_it_came_with_and_gets_one_otherwise(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = [client.get("/healthz", headers=given).headers["x-request-id"] for given in ({}, {"x-request-id": "a b"})]
    assert made[0] != made[1]
    assert all(len(each) == 16 for each in made)


def test_every_request_leaves_one_structured_line(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="promptstore.access"):
        client.post("/v1/classify", json=ASK, headers={"x-request-id": "line-1"})
        deadline = time.monotonic() + 5
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    (record,) = [each for each in caplog.records if each.name == "promptstore.access"]
    line = json.loads(JsonFormatter().format(record))
    assert line["request_id"] == "line-1"
    assert (line["status"], line["path"], line["version"]) == (200, "/v1/classify", "sentiment:1")
    assert line["at"].endswith("Z")


def test_an_unforeseen_failure_is_a_500_that_tells_strangers_nothing(model: FrozenModel) -> None:
    with live_server(store_of(model), model) as live:
        live.context.service.resolver = None  # type: ignore[assignment]
        answer = httpx.post(f"{live.url}/v1/classify", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "NoneType" not in answer.text


def test_metrics_count_requests_inputs_versions_and_refusals(bounded: LiveServer) -> None:
    httpx.post(f"{bounded.url}/v1/classify", json=ASK)
    httpx.post(f"{bounded.url}/v1/completions", json={"model": "answer", "prompt": "x", "max_tokens": 3})
    httpx.post(f"{bounded.url}/v1/classify", content=b"x" * 20_000)
    httpx.post(f"{bounded.url}/v1/classify", json={**ASK, "input": ["x"] * 9})
    text = httpx.get(f"{bounded.url}/metrics").text
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert found['promptstore_inputs_total{outcome="ok",task="sentiment",version="1"}'] >= 1
    assert found['promptstore_tokens_total{direction="written",task="answer"}'] >= 3
    assert found['promptstore_requests_refused_total{reason="body_too_large"}'] >= 1
    assert found['promptstore_requests_refused_total{reason="overloaded"}'] >= 1
    assert found['promptstore_http_requests_total{route="/v1/classify",status="200"}'] >= 1
    assert found['promptstore_bank_lookups_total{place="device"}'] >= 1
    assert found["promptstore_queued_inputs"] == 0
    for task in ("sentiment", "answer"):
        assert found[f'promptstore_queue_seconds_count{{task="{task}"}}'] >= 1
        assert found[f'promptstore_batch_rows_sum{{task="{task}"}}'] >= 1
        assert found[f'promptstore_prompts_found_total{{place="device",task="{task}"}}'] >= 1
    assert found['promptstore_alias_version{alias="production",task="sentiment"}'] == 1


def test_metrics_are_written_beside_the_loop(bounded: LiveServer) -> None:
    writers = []

    def read() -> list[Metric]:
        writers.append(threading.current_thread().name)
        return []

    bounded.context.metrics.watch(read)
    assert httpx.get(f"{bounded.url}/metrics").status_code == 200
    (writer,) = writers
    assert not writer.endswith("(run)"), "the thread of `listening`"


def test_inputs_that_a_full_queue_refuses_are_counted_for_their_task(model: FrozenModel) -> None:
    with live_server(store_of(model), model, ServerOptions(scheduler=SchedulerLimits(queued=2))) as live:
        assert httpx.post(f"{live.url}/v1/classify", json={**ASK, "input": ["x"] * 3}, timeout=60).status_code == 429
        text = httpx.get(f"{live.url}/metrics").text
    assert 'promptstore_inputs_total{outcome="refused",task="sentiment",version="1"} 3.0' in text


def test_what_goes_wrong_in_a_request_is_logged_under_its_id(model: FrozenModel) -> None:
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    keeping = Keeping()
    logging.getLogger("promptstore").addHandler(keeping)
    try:
        with live_server(store_of(model), model) as live:
            live.context.service.resolver = None  # type: ignore[assignment]
            httpx.post(f"{live.url}/v1/classify", json=ASK, headers={"x-request-id": "broken-1"}, timeout=60)
    finally:
        logging.getLogger("promptstore").removeHandler(keeping)
    (failed,) = [line for line in map(json.loads, lines) if line["message"] == "request failed"]
    assert failed["request_id"] == "broken-1"
    assert "AttributeError" in failed["error"]


def test_running_out_of_memory_is_a_503_that_may_be_repeated(model: FrozenModel) -> None:
    with live_server(store_of(model), model) as live:
        scheduler: Any = live.context.scheduler

        def no_memory(*_: object) -> None:
            raise torch.OutOfMemoryError("no room")

        for each in scheduler._engines:
            each._decoding.read = no_memory
        answer = httpx.post(f"{live.url}/v1/classify", json=ASK, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
    assert answer.headers["retry-after"] == "1"


def test_readiness_turns_as_soon_as_the_server_drains_and_health_does_not(model: FrozenModel) -> None:
    with live_server(store_of(model), model) as live:
        assert httpx.get(f"{live.url}/readyz").status_code == 200
        live.context.lifecycle.is_draining = True
        answer = httpx.get(f"{live.url}/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")
        assert httpx.get(f"{live.url}/healthz").status_code == 200
        assert httpx.post(f"{live.url}/v1/classify", json=ASK).status_code == 200


def test_health_fails_when_the_engines_thread_has_ended(model: FrozenModel) -> None:
    with live_server(store_of(model), model) as live:
        described = Described(httpx.get(f"{live.url}/openapi.json").json())
        live.context.scheduler.close()
        for probe in ("/healthz", "/readyz"):
            answer = httpx.get(f"{live.url}{probe}")
            assert answer.status_code == 503
            described.check(answer)
        assert httpx.post(f"{live.url}/v1/classify", json=ASK).status_code == 503
