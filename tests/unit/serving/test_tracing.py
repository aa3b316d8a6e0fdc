"""Where a request's time went, and where that is sent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from promptstore.lm.frozen import FrozenModel
from promptstore.serving.exporting import exporting_tracer
from promptstore.serving.options import ServerOptions
from promptstore.serving.tracing import OpenTelemetryTracer
from promptstore.settings import Settings
from promptstore.testing.served import live_server, store_of

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{CALLERS_TRACE}-b7ad6b7169203331-01"}


def test_a_request_is_a_span_of_the_callers_trace_with_its_work_beneath(model: FrozenModel) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with live_server(store_of(model), model, tracer=OpenTelemetryTracer(provider)) as live:
        httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": ["a", "b"]}, headers=HEADERS)
        httpx.get(f"{live.url}/v1/models/topic:1")
        httpx.post(f"{live.url}/v1/completions", json={"model": "answer", "prompt": "x", "max_tokens": 3})
    # Once the server has ended: a request's span ends a moment after its answer.
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans["POST /v1/classify"]
    assert format(request.context.trace_id, "032x") == CALLERS_TRACE
    assert (request.attributes or {})["promptstore.version"] == "sentiment:1"
    assert (request.attributes or {})["promptstore.status"] == 200
    assert "GET /v1/models/{ref:path}" in spans, "a span is named by its route: names must be few"
    assert (spans["score"].attributes or {})["promptstore.inputs"] == 2
    _check_beneath(request, spans["score"])
    _check_beneath(spans["POST /v1/completions"], spans["generate"])
    assert (spans["generate"].attributes or {})["promptstore.tokens"] == 3


def _check_beneath(request: ReadableSpan, work: ReadableSpan) -> None:
    assert work.parent is not None
    assert work.parent.span_id == request.context.span_id


def test_queue_and_batch_are_spans_within_the_work(model: FrozenModel) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = ServerOptions(parallel_batches=1)
    with live_server(store_of(model), model, options, tracer=OpenTelemetryTracer(provider)) as live:
        held = threading.Event()
        live.context.scheduler.call(lambda: held.wait(0.2))
        httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "a"})
    spans = {span.name: span for span in exporter.get_finished_spans()}
    work, queue, batch = (spans[name] for name in ("score", "queue", "batch"))
    for part in (queue, batch):
        assert part.parent is not None
        assert part.parent.span_id == work.context.span_id
    # The engine was kept busy for 0.2 s; some of that may have passed before the request came.
    assert _seconds(queue) + _seconds(batch) == pytest.approx(_seconds(work), abs=0.05)
    assert (queue.end_time or 0) <= (batch.end_time or 0)


def _seconds(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


@contextmanager
def _collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP endpoint; its URL and what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_spans_arrive_at_the_collector_that_is_named_under_the_callers_trace(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _collector() as (url, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with (
            exporting_tracer(Settings().otlp_endpoint) as tracer,
            live_server(store_of(model), model, tracer=tracer) as live,
        ):
            httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "a"}, headers=HEADERS)
        resources = [each for request in received for each in request.resource_spans]
    names = {
        each.value.string_value
        for found in resources
        for each in found.resource.attributes
        if each.key == "service.name"
    }
    spans = [span for found in resources for scope in found.scope_spans for span in scope.spans]
    assert names == {"promptstore"}
    assert {span.name for span in spans} == {"POST /v1/classify", "score", "queue", "batch"}
    assert {span.trace_id.hex() for span in spans} == {CALLERS_TRACE}


def test_a_collector_that_is_down_fails_no_request(model: FrozenModel) -> None:
    with (
        exporting_tracer("http://127.0.0.1:1") as tracer,
        live_server(store_of(model), model, tracer=tracer) as live,
    ):
        answer = httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": "a"})
    assert answer.status_code == 200


def test_without_an_endpoint_nothing_is_set_up() -> None:
    before = trace.get_tracer_provider()
    with exporting_tracer("") as tracer, tracer.span("x") as span:
        assert span.trace_id == ""
    assert trace.get_tracer_provider() is before
