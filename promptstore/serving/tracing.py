"""OpenTelemetry spans, for whoever has a tracer provider set up; nothing at all without the package.

Only the API is used: exporters and sampling are the operator's choice, through OpenTelemetry's own variables and
`opentelemetry-instrument`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

NAME = "promptstore.serving"


class Span(Protocol):
    """What is told about one piece of work while it lasts."""

    def set(self, name: str, value: str | float) -> None: ...


class Tracer(Protocol):
    """Opens spans. headers: of the request that the work is for, which may carry the caller's trace."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
        """A span that lasts as long as the context, a child of the one around it and a parent of those within."""
        raise NotImplementedError

    @contextmanager
    def detached_span(self, name: str) -> Iterator[Span]:
        """As `span`, without becoming a parent: for generators, whose steps may run in several contexts."""
        raise NotImplementedError


class NoTracer:
    """Traces nothing."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
        del name, headers
        yield self

    @contextmanager
    def detached_span(self, name: str) -> Iterator[Span]:
        del name
        yield self

    def set(self, name: str, value: str | float) -> None:
        del name, value


class OpenTelemetryTracer:
    """Spans of the global tracer provider, or of `provider`."""

    def __init__(self, provider: Any = None) -> None:
        from opentelemetry import propagate, trace

        self._propagate = propagate
        self._kinds = trace.SpanKind
        self._tracer = trace.get_tracer(NAME, tracer_provider=provider)

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
        context = None if headers is None else self._propagate.extract(headers)
        kind = self._kinds.INTERNAL if headers is None else self._kinds.SERVER
        with self._tracer.start_as_current_span(name, context=context, kind=kind) as span:
            yield _OpenTelemetrySpan(span)

    @contextmanager
    def detached_span(self, name: str) -> Iterator[Span]:
        span = self._tracer.start_span(name)
        try:
            yield _OpenTelemetrySpan(span)
        finally:
            span.end()


class _OpenTelemetrySpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def set(self, name: str, value: str | float) -> None:
        self._span.set_attribute(f"promptstore.{name}", value)


def default_tracer() -> Tracer:
    """OpenTelemetry's where its API is installed."""
    return OpenTelemetryTracer() if find_spec("opentelemetry") is not None else NoTracer()
