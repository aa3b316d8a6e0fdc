import httpx
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from promptstore.lm.frozen import FrozenModel
from promptstore.serving.tracing import OpenTelemetryTracer
from promptstore.testing.served import live_server, store_of

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_request_is_a_span_of_the_callers_trace_with_its_work_beneath(model: FrozenModel) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers = {"traceparent": f"00-{CALLERS_TRACE}-b7ad6b7169203331-01"}
    with live_server(store_of(model), model, tracer=OpenTelemetryTracer(provider)) as live:
        httpx.post(f"{live.url}/v1/classify", json={"model": "sentiment", "input": ["a", "b"]}, headers=headers)
        httpx.post(f"{live.url}/v1/completions", json={"model": "answer", "prompt": "x", "max_tokens": 3})
    spans: dict[str, ReadableSpan] = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/classify", "score", "POST /v1/completions", "generate"}
    request, work = spans["POST /v1/classify"], spans["score"]
    assert format(request.context.trace_id, "032x") == CALLERS_TRACE
    assert work.parent is not None
    assert work.parent.span_id == request.context.span_id
    assert (request.attributes or {})["promptstore.version"] == "sentiment:1"
    assert (request.attributes or {})["promptstore.status"] == 200
    assert (work.attributes or {})["promptstore.inputs"] == 2
    generated = spans["generate"]
    assert generated.parent is not None
    assert generated.parent.span_id == spans["POST /v1/completions"].context.span_id
    assert (generated.attributes or {})["promptstore.tokens"] == 3
