"""What the server says about itself to Prometheus. One registry per server; nothing global."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters and histograms that requests write, and gauges that are read when Prometheus asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "promptstore_http_requests",
            "HTTP requests answered, by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "promptstore_http_request_seconds",
            "Time from the request's first byte to the answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inputs = Counter(
            "promptstore_inputs",
            "Inputs asked for, by task, version and outcome; those of a request that a full queue turns away before it "
            "is read, or names what cannot be resolved, are not among them.",
            ("task", "version", "outcome"),
            registry=self.registry,
        )
        self.answer_seconds = Histogram(
            "promptstore_answer_seconds",
            "Time from an input's submission to its answer, queueing included.",
            ("task",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "promptstore_first_token_seconds",
            "Time from an input's submission to the first generated token.",
            ("task",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "promptstore_queue_seconds",
            "Time that an input waited for its batch.",
            ("task",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "promptstore_batch_rows",
            "Inputs that shared an input's batch, itself included, when it was read.",
            ("task",),
            buckets=_ROWS,
            registry=self.registry,
        )
        self.prompts_found = Counter(
            "promptstore_prompts_found",
            "Inputs by where their prompt was: device, host, disk, or computed for them.",
            ("task", "place"),
            registry=self.registry,
        )
        self.tokens = Counter(
            "promptstore_tokens",
            "Tokens read from inputs and generated, by task.",
            ("task", "direction"),
            registry=self.registry,
        )
        self.refused = Counter(
            "promptstore_requests_refused",
            "Requests turned away, by reason: before any work, or because they waited in vain.",
            ("reason",),
            registry=self.registry,
        )

        self.given_up = Counter(
            "promptstore_rollouts_given_up",
            "Versions on trial that broke a bound here: alert on it.",
            ("task", "alias", "version"),
            registry=self.registry,
        )

        self.shadows = Counter(
            "promptstore_shadow_inputs",
            "Inputs asked on the side of a version on trial, by what came of it.",
            ("task", "outcome"),
            registry=self.registry,
        )

    def watch(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Adds metrics that are computed when Prometheus asks."""
        self.registry.register(_Reading(read))

    def render(self) -> bytes:
        return generate_latest(self.registry)


def gauge(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> Metric:
    """A gauge with one sample per set of label values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def counter(
    name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> Metric:
    """A counter that something else counts, with one sample per set of label values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


class _Reading(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()

    def describe(self) -> Iterable[Metric]:
        return ()
