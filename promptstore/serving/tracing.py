"""OpenTelemetry spans; nothing at all without the package. Where they go: `promptstore.serving.exporting`."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

NAME = "promptstore.serving"


class Span(Protocol):
    """What is told about one piece of work while it lasts."""

    def set(self, name: str, value: str | float) -> None: ...

    def rename(self, name: str) -> None: ...

    def add_part(self, name: str, started: float, ended: float) -> None:
        """A span within this one that is over. started, ended: monotonic seconds."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty if nothing is traced."""


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

    def rename(self, name: str) -> None:
        del name

    def add_part(self, name: str, started: float, ended: float) -> None:
        del name, started, ended

    @property
    def trace_id(self) -> str:
        return ""


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
            yield _OpenTelemetrySpan(span, self._tracer)

    @contextmanager
    def detached_span(self, name: str) -> Iterator[Span]:
        span = self._tracer.start_span(name)
        try:
            yield _OpenTelemetrySpan(span, self._tracer)
        except Exception as error:
            span.record_exception(error)
            raise
        finally:
            span.end()


class _OpenTelemetrySpan:
    def __init__(self, span: Any, tracer: Any) -> None:
        self._span = span
        self._tracer = tracer

    def set(self, name: str, value: str | float) -> None:
        self._span.set_attribute(f"promptstore.{name}", value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def add_part(self, name: str, started: float, ended: float) -> None:
        from opentelemetry.trace import set_span_in_context

        zero_ns = time.time_ns() - int(1e9 * time.monotonic())
        context = set_span_in_context(self._span)
        part = self._tracer.start_span(name, context=context, start_time=zero_ns + int(1e9 * started))
        part.end(end_time=zero_ns + int(1e9 * ended))

    @property
    def trace_id(self) -> str:
        context = self._span.get_span_context()
        return format(context.trace_id, "032x") if context.is_valid else ""


def default_tracer() -> Tracer:
    """OpenTelemetry's where its API is installed."""
    return OpenTelemetryTracer() if find_spec("opentelemetry") is not None else NoTracer()
