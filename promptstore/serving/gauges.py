"""What Prometheus reads off the server's parts when it asks."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from promptstore.serving.context import ServerContext
from promptstore.serving.metrics import counter, gauge


def read_gauges(context: ServerContext) -> Iterable[Metric]:
    """Queue, bank, staleness and versions as they are now."""
    yield from _engine(context)
    yield from _store(context)


def _engine(context: ServerContext) -> Iterable[Metric]:
    scheduler, bank = context.scheduler, context.bank
    yield gauge("promptstore_queued_inputs", "Inputs that wait for the engine.", [((), scheduler.queued)])
    yield gauge("promptstore_running_answers", "Answers being generated.", [((), scheduler.running)])
    is_available = float(scheduler.problem is None)
    yield gauge(
        "promptstore_engine_is_available", "0 while nothing can be answered: alert on it.", [((), is_available)]
    )
    places = [((place,), float(size)) for place, size in bank.size_bytes.items()]
    yield gauge("promptstore_bank_bytes", "Prompts kept, by place.", places, ("place",))
    found = [((place,), float(count)) for place, count in list(bank.counts.items())]
    yield counter(
        "promptstore_bank_lookups", "Prompts asked for by a batch, by where they were found.", found, ("place",)
    )


def _store(context: ServerContext) -> Iterable[Metric]:
    follower = context.follower
    yield gauge(
        "promptstore_store_staleness_seconds", "Time since the store was last seen.", [((), follower.staleness_s)]
    )
    yield gauge(
        "promptstore_store_staleness_bound_seconds",
        "Over this, the state is stale.",
        [((), context.staleness_bound_s)],
    )
    yield gauge("promptstore_store_is_stale", "1 if staleness is over its bound.", [((), float(context.is_stale))])
    yield gauge("promptstore_store_commit", "Number of the last commit followed.", [((), follower.table.state.number)])
    versions = [
        ((task, alias), float(target.version.number)) for (task, alias), target in follower.table.targets.items()
    ]
    yield gauge("promptstore_alias_version", "The version that each alias is served at.", versions, ("task", "alias"))
    staleness = [(key, follower.alias_staleness_s(key)) for key in follower.table.targets]
    yield gauge(
        "promptstore_alias_staleness_seconds",
        "Time since the version that an alias is served at was seen to be the store's.",
        staleness,
        ("task", "alias"),
    )
    refused = [
        ((task, alias, str(refusal.version.number)), 1.0)
        for (task, alias), refusal in follower.table.refused.items()
        if not refusal.is_foreign
    ]
    yield gauge(
        "promptstore_version_refused",
        "1 for a version that an alias points at and that is not served: alert on it.",
        refused,
        ("task", "alias", "version"),
    )
