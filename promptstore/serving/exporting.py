"""Sends OpenTelemetry spans to a collector by OTLP over HTTP, where one is named."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from promptstore.errors import InvalidInputError
from promptstore.serving.tracing import OpenTelemetryTracer, Tracer, default_tracer

SERVICE = "promptstore"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


@contextmanager
def exporting_tracer(endpoint: str) -> Iterator[Tracer]:
    """A tracer whose spans go to `endpoint`; what is not sent yet is sent when the block ends.

    endpoint: a collector's base URL, `http://127.0.0.1:4318` say; empty leaves it to a tracer provider that the process
    has already (`opentelemetry-instrument`), or to nobody. Name, sampling and headers are OpenTelemetry's own variables
    (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS). A collector that is down costs spans only.

    Raises:
        InvalidInputError: an endpoint without the packages to reach it.
    """
    if not endpoint or _has_provider():
        yield default_tracer()
        return
    if not _is_installed():
        raise InvalidInputError(
            f"traces are to go to {endpoint}, but OpenTelemetry's exporter is not installed; "
            "install promptstore[tracing], or unset PROMPTSTORE_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    try:
        yield OpenTelemetryTracer(provider)
    finally:
        provider.shutdown()


def _has_provider() -> bool:
    """Whether something else has set this process's tracer provider."""
    if find_spec("opentelemetry") is None:
        return False
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _is_installed() -> bool:
    try:
        return find_spec(_EXPORTER) is not None and find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:
        return False
