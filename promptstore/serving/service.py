"""What the server does, without HTTP: resolve, encode, queue, answer."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial

from promptstore.errors import InvalidInputError
from promptstore.lm.described_model import DescribedModel
from promptstore.runtime.answerer import Answerer
from promptstore.runtime.job import Finished, FinishReason, Generated, GenerateJob, Job, ScoreJob
from promptstore.runtime.sampling import ChosenToken, Sampling
from promptstore.serving.accounts import Accounts
from promptstore.serving.delivery import Delivery
from promptstore.serving.loaded import Input
from promptstore.serving.metrics import ServerMetrics
from promptstore.serving.resolving import Resolver
from promptstore.serving.shadow import Shadow
from promptstore.serving.table import Target
from promptstore.serving.tracing import NoTracer, Span, Tracer
from promptstore.serving.trials import Trial, TrialJudge

_LONG_TEXT_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Classified:
    """One input under one task. asked: the ref as the request had it. probabilities: by label, in the task's order."""

    index: int
    asked: str
    target: Target
    probabilities: Mapping[str, float]
    input_tokens: int
    is_truncated: bool

    @property
    def label(self) -> str:
        return max(self.probabilities, key=lambda name: self.probabilities[name])


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """As `Sampling`, with `None` for what the request leaves to the task."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became certain, with the token it came with; the last piece has the reason of the end instead."""

    text: str
    token: ChosenToken | None = None
    reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """texts: inputs times tasks of one request. input_chars: of one input, all fields together."""

    texts: int = 256
    input_chars: int = 100_000
    new_tokens: int = 1024


@dataclass(slots=True)
class Encoded:
    """An input and its token ids. is_truncated: its longest field lost its end, as in training."""

    given: Input
    ids: list[int]
    is_truncated: bool


@dataclass(slots=True)
class Service:
    """Answers requests; safe to use from many coroutines of one loop.

    encoding: the thread that long inputs are encoded on, so that the loop goes on meanwhile.
    """

    model: DescribedModel
    resolver: Resolver
    scheduler: Answerer
    metrics: ServerMetrics
    judge: TrialJudge
    shadow: Shadow
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    tracer: Tracer = field(default_factory=NoTracer)
    encoding: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoding"))
    _inputs_encoding: int = field(default=0, init=False)
    _accounts: Accounts = field(init=False)

    def __post_init__(self) -> None:
        self._accounts = Accounts(self.metrics, self.judge, self.resolver)

    def close(self) -> None:
        """Ends its thread, once no request is left."""
        self.encoding.shutdown(wait=False, cancel_futures=True)

    def require_room(self) -> None:
        """Raises what a request of one input would be told now, if it would not be taken: as `Answerer.submit`."""
        self.scheduler.check(self._inputs_encoding + 1)

    async def classify(self, refs: Sequence[str], inputs: Sequence[Input], caller: str = "") -> list[Classified]:
        """Every input under every ref, inputs outermost. All of it is queued at once, or nothing.

        caller: as in `Resolver.holding`.

        Raises:
            InvalidInputError: a ref of a generation task, fields that the template lacks, too much at once.
            OverloadedError, NotServingError: as `Answerer.submit`. Others as `Resolver.holding`.
        """
        async with contextlib.AsyncExitStack() as stack:
            targets = [(ref, await stack.enter_async_context(self.resolver.holding(ref, caller))) for ref in refs]
            return await self.classify_under(targets, inputs)

    async def classify_under(self, targets: Sequence[tuple[str, Target]], inputs: Sequence[Input]) -> list[Classified]:
        """As `classify`, under versions that the caller resolved and holds."""
        with self._accounts.taking([target for _, target in targets], inputs=len(inputs)):
            if len(targets) * len(inputs) > self.limits.texts:
                raise InvalidInputError(
                    f"{len(inputs)} inputs for {len(targets)} tasks exceed {self.limits.texts} answers; send fewer"
                )
            for _, target in targets:
                with self._refusing(target, _require_labels):
                    _require_labels(target)
        asked = [(index, ref, target) for index in range(len(inputs)) for ref, target in targets]
        encoded = await self.encode([(target, inputs[index]) for index, _, target in asked])
        with self.tracer.span("score") as span:
            answers = await self._score(asked, encoded, span)
            span.set("inputs", len(asked))
            span.set("tokens", sum(len(each.ids) for each in encoded))
        for answer in answers:
            if (shadowed := self._shadowed(answer.target)) is not None:
                given = inputs[answer.index]
                self._beside(given, partial(self.shadow.ask_label, *shadowed, given, answer.label))
        return answers

    async def _score(
        self, asked: Sequence[tuple[int, str, Target]], encoded: Sequence[Encoded], span: Span
    ) -> list[Classified]:
        deliveries = [Delivery() for _ in asked]
        jobs = [
            ScoreJob(target.version.digest, each.ids, target.prompt.label_token_ids, delivery.deliver)
            for (_, _, target), each, delivery in zip(asked, encoded, deliveries, strict=True)
        ]
        started = time.monotonic()
        answers = []
        with self._queued(jobs, [target for _, _, target in asked]) as answering:
            for number, (index, ref, target) in enumerate(asked):
                each, delivery = encoded[number], deliveries[number]
                with answering(number):
                    scored = await delivery.scored()
                self._accounts.batched(target, jobs[number])
                self._accounts.answered(target, delivery.answer_s, read=len(each.ids))
                probabilities = dict(zip(target.prompt.task.label_names, softmax(scored.logits), strict=True))
                answers.append(Classified(index, ref, target, probabilities, len(each.ids), each.is_truncated))
            _add_waiting(span, started, jobs)
        return answers

    @contextlib.contextmanager
    def generating(
        self, target: Target, asked: Sequence[tuple[Encoded, Sampling]]
    ) -> Iterator[list[AsyncGenerator[Piece]]]:
        """Every answer piece by piece. All are queued at once, or none; the end of the context frees their places.

        Raises:
            OverloadedError, NotServingError: as `Answerer.submit`.
        """
        deliveries = [Delivery() for _ in asked]
        jobs = [
            GenerateJob(target.version.digest, encoded.ids, sampling, delivery.deliver)
            for (encoded, sampling), delivery in zip(asked, deliveries, strict=True)
        ]
        started = time.monotonic()
        with self._queued(jobs, [target] * len(jobs)) as answering:
            yield [
                self._pieces(target, encoded, jobs[number], deliveries[number], started, answering(number))
                for number, (encoded, _) in enumerate(asked)
            ]

    async def _pieces(
        self,
        target: Target,
        encoded: Encoded,
        job: GenerateJob,
        delivery: Delivery,
        started: float,
        answering: contextlib.AbstractContextManager[None],
    ) -> AsyncGenerator[Piece]:
        count = 0
        text = ""
        with answering, self.tracer.detached_span("generate") as span:
            span.set("version", str(target.version))
            async for event in delivery.events():
                if isinstance(event, Generated):
                    if count == 0:
                        self._accounts.batched(target, job)
                        _add_waiting(span, started, [job])
                        self.metrics.first_token_seconds.labels(target.version.task).observe(time.monotonic() - started)
                    count += 1
                    text += event.text
                    yield Piece(event.text, token=event.token)
                elif isinstance(event, Finished):
                    text += event.text
                    span.set("tokens", count)
                    yield Piece(event.text, reason=event.reason)
        self._accounts.answered(target, delivery.answer_s, read=len(encoded.ids), wrote=count)
        if (shadowed := self._shadowed(target)) is not None:
            given = encoded.given
            self._beside(given, partial(self.shadow.ask_text, *shadowed, given, job.sampling, text))

    async def ready(
        self, target: Target, inputs: Sequence[Input], asked: SamplingRequest
    ) -> list[tuple[Encoded, Sampling]]:
        """Every input encoded, and the request's sampling with the task's defaults, checked against the room it leaves.

        Raises:
            InvalidInputError: more tokens than the server or the model's positions allow, or a value out of range.
                Others as `encode`.
        """
        encoded = await self.encode([(target, value) for value in inputs])
        with self._accounts.taking([target], inputs=len(inputs)):
            return [(each, self._checked_sampling(target, each, asked)) for each in encoded]

    def _checked_sampling(self, target: Target, encoded: Encoded, asked: SamplingRequest) -> Sampling:
        with self._refusing(target, lambda other: self._sampling(other, self._encode(other, encoded.given), asked)):
            return self._sampling(target, encoded, asked)

    def _sampling(self, target: Target, encoded: Encoded, asked: SamplingRequest) -> Sampling:
        max_tokens = target.prompt.task.max_target_tokens if asked.max_tokens is None else asked.max_tokens
        room = self.limits.new_tokens
        if self.model.max_length is not None and not self.model.is_encoder_decoder:
            taken = target.prompt.prompt.num_virtual_tokens + len(encoded.ids)
            room = min(room, self.model.max_length - taken)
        if max_tokens > room:
            raise InvalidInputError(f"max_tokens is {max_tokens}, this input leaves room for {room}")
        return Sampling(max_tokens, asked.temperature, asked.top_p, asked.stop, asked.seed, asked.top_logprobs)

    async def encode(self, asked: Sequence[tuple[Target, Input]]) -> list[Encoded]:
        """Token ids of every input, by its task's own template; what occurs twice is encoded once.

        Raises:
            OverloadedError, NotServingError: the queue would not take so many; nothing was encoded.
            InvalidInputError: fields that the template lacks, empty or too long.
        """
        keys = [(target.version.digest, _key(value)) for target, value in asked]
        is_long = sum(_chars(value) for _, value in asked) >= _LONG_TEXT_CHARS
        found: dict[tuple[str, object], Encoded] = {}
        with self._accounts.taking([target for target, _ in asked]), self._admitted(len(asked)):
            for key, (target, value) in zip(keys, asked, strict=True):
                if key not in found:
                    found[key] = await self._encode_one(target, value, is_long=is_long)
        return [found[key] for key in keys]

    async def _encode_one(self, target: Target, value: Input, *, is_long: bool) -> Encoded:
        with self._refusing(target, lambda other: self._encode(other, value)):
            if not is_long:
                return self._encode(target, value)
            return await asyncio.get_running_loop().run_in_executor(self.encoding, self._encode, target, value)

    def _encode(self, target: Target, value: Input) -> Encoded:
        row, chars = target.prompt.row(value), _chars(value)
        if chars > self.limits.input_chars:
            raise InvalidInputError(f"the input has {chars} characters, at most {self.limits.input_chars} are taken")
        encoder = target.prompt.encoder
        ids = encoder.encode(row)
        may_be_cut = len(ids) >= encoder.max_input_tokens
        return Encoded(value, ids, may_be_cut and encoder.count_tokens(row) > encoder.max_input_tokens)

    @contextlib.contextmanager
    def _queued(
        self, jobs: Sequence[Job], targets: Sequence[Target]
    ) -> Iterator[Callable[[int], contextlib.AbstractContextManager[None]]]:
        """Queues the inputs of a request, and takes back what is left of them at the end. Gives what `taken` does."""
        with self._accounts.taking(targets):
            self.scheduler.submit(jobs)
        try:
            with self._accounts.taken(targets) as answering:
                yield answering
        finally:
            for job in jobs:
                job.is_cancelled = True

    @contextlib.contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        """Refuses what the queue would not take, with what others encode for it meanwhile."""
        self._inputs_encoding += count
        try:
            self.scheduler.check(self._inputs_encoding)
            yield
        finally:
            self._inputs_encoding -= count

    @contextlib.contextmanager
    def _refusing(self, target: Target, take: Callable[[Target], object]) -> Iterator[None]:
        """Counts a refusal against a version on trial, if the one in place takes the same. take: tries that one."""
        try:
            yield
        except InvalidInputError:
            trial, in_place = self.resolver.trial_of(target), self.resolver.in_place_of(target)
            if trial is not None and in_place is not None:
                loop = asyncio.get_running_loop()
                loop.run_in_executor(self.encoding, self._compare_refusal, trial, partial(take, in_place))
            raise

    def _compare_refusal(self, trial: Trial, take_in_place: Callable[[], object]) -> None:
        with contextlib.suppress(InvalidInputError):
            take_in_place()
            trial.refuse()
            self.judge.judge(trial)

    def _beside(self, given: Input, ask: Callable[[], None]) -> None:
        """Asks a shadow; the loop does not wait for a long input to be encoded."""
        if _chars(given) < _LONG_TEXT_CHARS:
            ask()
        else:
            asyncio.get_running_loop().run_in_executor(self.encoding, copy_context().run, ask)

    def _shadowed(self, target: Target) -> tuple[Trial, Target] | None:
        """The version that is to be asked on the side of `target`, if there is one: a shadow, or what a version on
        trial for a share of callers has to agree with."""
        trial = self.resolver.trial_of(target)
        if trial is None or trial.is_over:
            return None
        if trial.rollout.mode == "shadow":
            other = self.resolver.on_trial(target)
        else:
            other = None if trial.rollout.bounds.min_agreement is None else self.resolver.in_place_of(target)
        return None if other is None else (trial, other)


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def _require_labels(target: Target) -> None:
    if target.prompt.task.kind != "classification":
        raise InvalidInputError(f"{target.version} generates text; ask /v1/completions")


def _key(value: Input) -> object:
    return value if isinstance(value, str) else tuple(sorted(value.items()))


def _chars(value: Input) -> int:
    texts = (value,) if isinstance(value, str) else value.values()
    return sum(len(text) for text in texts if isinstance(text, str))


def _add_waiting(span: Span, started: float, jobs: Sequence[Job]) -> None:
    """Spans for the time in the queue and in batches. started: when `jobs` were queued, monotonic seconds."""
    waited = [job.waited_s for job in jobs if job.waited_s is not None]
    if waited:
        span.add_part("queue", started, started + max(waited))
        span.add_part("batch", started + min(waited), time.monotonic())
