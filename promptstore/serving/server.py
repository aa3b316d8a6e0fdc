"""Puts a server together and runs it until it is told to stop."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn

from promptstore.errors import StoreUnavailableError
from promptstore.runtime.answerer import Answerer
from promptstore.runtime.bank import PromptBank
from promptstore.serving.access import Access
from promptstore.serving.api_keys import SCOPES, ApiKey, KeyFile, digest_key
from promptstore.serving.app import create_app
from promptstore.serving.connections import patient_protocol
from promptstore.serving.context import ServerContext
from promptstore.serving.engines import ServedEngine, open_engine
from promptstore.serving.exporting import exporting_tracer
from promptstore.serving.following import FollowedStore, Follower, FollowStatus, Remember, forget
from promptstore.serving.lifecycle import Lifecycle
from promptstore.serving.loaded import LoadedPrompt, load_prompt
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.middleware import JsonFormatter
from promptstore.serving.options import ServerOptions
from promptstore.serving.resolving import Resolver
from promptstore.serving.service import Service
from promptstore.serving.shadow import Shadow
from promptstore.serving.tracing import Tracer, default_tracer
from promptstore.serving.trials import TrialJudge
from promptstore.settings import Settings
from promptstore.store.last_known import LastKnown
from promptstore.store.prompt_store import PromptStore
from promptstore.store.rollout import Rollout, abort_rollout
from promptstore.wiring import last_known, open_prompt_store, resume_prompt_store

logger = logging.getLogger(__name__)


def run(settings: Settings, options: ServerOptions) -> None:
    """Serves `settings.model` with the prompts of `settings.store_url`; returns after SIGTERM or Ctrl-C, drained.

    Raises:
        InvalidInputError: options that do not fit, an unknown model source.
        IncompatibleModelError: vLLM is to answer and serves another model, or takes no prompt embeddings.
        NotFoundError: there is no store.
        StoreUnavailableError: it cannot be reached, and this machine has never served it before.
        OSError: the port is taken, or the address is not of this machine.
    """
    access = _access(settings, options)
    options.check(has_keys=access.asks_for_keys)
    listener = _listen(options.host, options.port)
    _log_to_stderr()
    known = last_known(settings)
    store, status = _open_store(settings, known)
    engine = open_engine(settings, options)
    abort = partial(_abort, store) if options.may_abort_rollouts else None
    with (
        exporting_tracer(settings.otlp_endpoint) as tracer,
        serving(
            store,
            engine,
            options,
            access=access,
            abort=abort,
            tracer=tracer,
            remember=lambda state, unseen_s: known.save(store.ledger.header, state, unseen_s=unseen_s),
            status=status,
        ) as context,
    ):
        app = create_app(context, limits=options.body)
        config = uvicorn.Config(
            app,
            http=patient_protocol(options.body.receive_s, most=options.body.connections),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=int(options.drain_s),
            timeout_keep_alive=30,
        )
        logger.info("serving %s at http://%s:%d", engine.model.fingerprint.name, options.host, options.port)
        DrainingServer(config, context.lifecycle, delay_s=options.drain_delay_s).run(sockets=[listener])


@contextmanager
def serving(
    store: FollowedStore,
    engine: ServedEngine,
    options: ServerOptions,
    *,
    access: Access | None = None,
    abort: Callable[[Rollout, str], object] | None = None,
    tracer: Tracer | None = None,
    remember: Remember = forget,
    status: FollowStatus | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ServerContext]:
    """A context whose engine and follower run until the `with` block ends; then it answers what it has.

    engine: not started yet; its end is this function's.
    access: `None` lets everybody in. remember, status: as in `Follower`. clock: monotonic seconds, for staleness.
    abort: writes to the store that a rollout broke its bounds; `None` for a server that may only read.
    """
    model, bank, scheduler = engine.model, engine.bank, engine.answerer
    metrics = ServerMetrics()
    judge = TrialJudge(abort or _abort_nowhere, metrics)
    follower = Follower(
        store,
        bank,
        fingerprint=model.fingerprint,
        load=partial(load_prompt, model=model),
        prepare=partial(_prepare, scheduler, bank),
        insist=judge.insist,
        tasks=options.tasks,
        poll_s=options.poll_s,
        remember=remember,
        status=status,
        clock=clock,
    )
    resolver = Resolver(follower, bank, options.tasks)
    service = Service(
        model,
        resolver,
        scheduler,
        metrics,
        judge,
        Shadow(scheduler, bank, judge, metrics, busy_at=max(1, options.queued // 4)),
        options.service,
        tracer or default_tracer(),
    )
    scheduler.start()
    try:
        follower.start()
        yield ServerContext(
            service=service,
            follower=follower,
            bank=bank,
            scheduler=scheduler,
            metrics=metrics,
            access=access or Access(anonymous_per_minute=options.anonymous_per_minute),
            decoding=engine.decoding,
            staleness_bound_s=options.staleness_bound_s,
        )
    finally:
        follower.close()
        scheduler.drain(options.drain_s)
        scheduler.close()
        judge.close()
        service.close()
        resolver.close()


def _open_store(settings: Settings, known: LastKnown) -> tuple[PromptStore, FollowStatus | None]:
    """The store; or, while it is away, what was last known of it, and since when it has not been seen."""
    try:
        return open_prompt_store(settings, create=False), None
    except StoreUnavailableError as error:
        last = known.load()
        if last is None:
            raise
        unseen_s = max(0.0, time.time() - last.seen_at)
        logger.warning(
            "the store cannot be reached: %s; starting with commit %d, as it was seen %.0f s ago",
            error,
            last.state.number,
            unseen_s,
        )
        return resume_prompt_store(settings, last), FollowStatus(time.monotonic() - unseen_s, error)


def _prepare(scheduler: Answerer, bank: PromptBank[LoadedPrompt], digest: str) -> Future[object]:
    """Puts a held prompt on the device between two batches; waits for none if it is there already."""
    if bank.tier(digest) == "device":
        ready: Future[object] = Future()
        ready.set_result(None)
        return ready
    return scheduler.call(lambda: bank.prepared(digest))


def _abort(store: PromptStore, rollout: Rollout, why: str) -> object:
    return abort_rollout(store, rollout.task, rollout.alias, why=why, commit=rollout.commit)


def _abort_nowhere(rollout: Rollout, why: str) -> None:
    del rollout, why


class DrainingServer(uvicorn.Server):
    """On SIGTERM it first says so in /readyz, then stops taking connections and answers what it has."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, *, delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._delay_s = delay_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, does not raise the signal again afterwards: what runs behind `run` cleans up."""
        del frame
        if self._lifecycle.is_draining:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
            return
        self._lifecycle.is_draining = True
        if sig == signal.SIGTERM and self._delay_s > 0:
            logger.info("draining: no new connections in %.1f s", self._delay_s)
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._delay_s, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """Takes the port before the model is loaded: a taken one is known at once. No connection is accepted yet."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)


def _access(settings: Settings, options: ServerOptions) -> Access:
    own = settings.api_key  # an empty one is none: it would let in whoever sends nothing
    if options.api_keys is not None:
        if own:
            logger.warning("PROMPTSTORE_API_KEY lets nobody in here: with --api-keys, the file alone says who may ask")
        file = KeyFile(options.api_keys)
        file.warn_of_none()
        return Access(file.keys, changed=file.changed)
    if not own:
        return Access(anonymous_per_minute=options.anonymous_per_minute)
    return Access([ApiKey("PROMPTSTORE_API_KEY", digest_key(own.get_secret_value()), frozenset(SCOPES))])


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("promptstore", "uvicorn"):
        target = logging.getLogger(name)
        target.handlers = [handler]
        target.setLevel(logging.INFO)
        target.propagate = False
