"""A store with tiny tasks and a real server on a free port, for tests."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from promptstore.core.state import PromptVersion
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.input_layer import InputLayer
from promptstore.objects.memory import MemoryObjectStore
from promptstore.serving.access import Access
from promptstore.serving.api_keys import ApiKey
from promptstore.serving.app import create_app
from promptstore.serving.connections import patient_protocol
from promptstore.serving.context import ServerContext
from promptstore.serving.engines import ServedEngine, own_engine, vllm_engine
from promptstore.serving.middleware import BodyLimits
from promptstore.serving.options import ServerOptions
from promptstore.serving.server import serving
from promptstore.serving.tracing import Tracer
from promptstore.store.ledger import Ledger
from promptstore.store.objects import ObjectStore
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import Rollout, abort_rollout
from promptstore.testing.engine_rig import random_prompt
from promptstore.testing.listening import listening

DATA = DataSource(train="train.jsonl", validation="validation.jsonl")
SENTIMENT = TaskSpec(
    name="sentiment",
    kind="classification",
    template="Review: {text}\nSentiment:",
    data=DATA,
    labels=(Label("pos", "positive"), Label("neg", "negative")),
    max_input_tokens=64,
)
TOPIC = TaskSpec(
    name="topic",
    kind="classification",
    template="Text: {text}\nTopic:",
    data=DATA,
    labels=(Label("news", "news"), Label("sport", "sport"), Label("science", "science")),
    max_input_tokens=64,
)
ENTAILMENT = TaskSpec(
    name="entailment",
    kind="classification",
    template="Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:",
    data=DATA,
    labels=(Label("yes", "yes"), Label("no", "no")),
)
ANSWER = TaskSpec(
    name="answer", kind="generation", template="Question: {question}\nAnswer:", data=DATA, max_target_tokens=12
)
TASKS = (SENTIMENT, TOPIC, ENTAILMENT, ANSWER)


def new_store(objects: ObjectStore | None = None) -> PromptStore:
    """An empty store in memory, or in `objects`."""
    objects = objects or MemoryObjectStore("served")
    return PromptStore(Ledger.create(objects, actor="tester"), objects)


def publish_random(
    store: PromptStore, model: FrozenModel, task: TaskSpec, *, seed: int, alias: str | None = "production"
) -> PromptVersion:
    """A random prompt as the task's next version, with `alias` pointing at it."""
    version = store.publish(random_prompt(model, 3 + seed % 7, seed), task, reason="test")
    if alias is not None:
        store.promote(f"{task.name}:{version.number}", alias, reason="test", force=True)
    return version


def store_of_candidates(model: FrozenModel) -> PromptStore:
    """Versions of one task: 1 in production, 2 with a passing gate, 3 without."""
    store = new_store()
    publish_random(store, model, SENTIMENT, seed=1)
    publish_random(store, model, SENTIMENT, seed=2, alias=None)
    store.attest("sentiment:2", "gate", {"verdict": "pass"})
    publish_random(store, model, SENTIMENT, seed=3, alias=None)
    return store


def store_of(model: FrozenModel, tasks: Sequence[TaskSpec] = TASKS) -> PromptStore:
    """A store with one version of each task in production."""
    store = new_store()
    for seed, task in enumerate(tasks):
        publish_random(store, model, task, seed=seed)
    return store


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A server that listens. url: of its root."""

    url: str
    context: ServerContext


@contextmanager
def live_server(
    store: PromptStore,
    model: FrozenModel,
    options: ServerOptions | None = None,
    *,
    keys: list[ApiKey] | None = None,
    access: Access | None = None,
    body: BodyLimits | None = None,
    tracer: Tracer | None = None,
    clock: Callable[[], float] = time.monotonic,
    spill_folder: Path | None = None,
) -> Iterator[LiveServer]:
    """Serves until the block ends. keys: shorthand for an `access` that knows these."""
    options = options or ServerOptions(poll_s=0.05)
    engine = own_engine(model, options, spill_folder=spill_folder)
    access = Access(keys) if keys else access
    with _live(store, engine, options, access=access, body=body, tracer=tracer, clock=clock) as live:
        yield live


@contextmanager
def live_gateway(store: PromptStore, layer: InputLayer, options: ServerOptions) -> Iterator[LiveServer]:
    """The same in front of the vLLM server that `options` names."""
    with _live(store, vllm_engine(layer, options), options) as live:
        yield live


@contextmanager
def _live(
    store: PromptStore,
    engine: ServedEngine,
    options: ServerOptions,
    *,
    access: Access | None = None,
    body: BodyLimits | None = None,
    tracer: Tracer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[LiveServer]:
    abort = partial(_abort, store)
    body = body or BodyLimits()
    http = patient_protocol(body.receive_s, most=body.connections)
    with (
        serving(store, engine, options, access=access, abort=abort, tracer=tracer, clock=clock) as context,
        listening(create_app(context, limits=body), http=http) as url,
    ):
        yield LiveServer(url, context)


def _abort(store: PromptStore, rollout: Rollout, why: str) -> object:
    return abort_rollout(store, rollout.task, rollout.alias, why=why, commit=rollout.commit)
