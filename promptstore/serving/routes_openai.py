"""OpenAI's completions, chat completions and models: existing clients work, `model` names a version."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from promptstore.errors import InvalidInputError
from promptstore.serving.answers import ChatAnswer, CompletionAnswer, Model, ModelList
from promptstore.serving.bodies import STREAM_END, model_body, server_sent, version_headers
from promptstore.serving.context import Caller, Context, ServerContext, allow
from promptstore.serving.failures import describe
from promptstore.serving.loaded import Input
from promptstore.serving.openai_shape import ChatShape, CompletionShape, Envelope, Shape, Whole, usage_of
from promptstore.serving.responses import EVERY_REFUSAL, gives, refusals
from promptstore.serving.schemas import ChatRequest, CompletionRequest
from promptstore.serving.service import Encoded, Piece, SamplingRequest
from promptstore.serving.table import Target

router = APIRouter(tags=["openai"])
_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`: OpenAI's chunks."}}}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request of either kind, reduced to what answering needs."""

    ref: str
    caller: str
    inputs: Sequence[Input]
    sampling: SamplingRequest
    has_logprobs: bool
    is_stream: bool
    wants_usage: bool


@router.post(
    "/v1/completions",
    dependencies=[allow("infer")],
    response_model=None,
    responses={**gives(CompletionAnswer, is_versioned=True, content=_STREAM), **refusals(*EVERY_REFUSAL)},
)
async def complete(asked: CompletionRequest, context: Context, caller: Caller) -> Response:
    """Text that continues each prompt under its task's template; for a classification task, the label's text."""
    asked.check_supported(echo=asked.echo, best_of=asked.best_of, suffix=asked.suffix)
    if (asked.prompt is None) == (asked.input is None):
        raise InvalidInputError("send either prompt (the text of the template's only field) or input (its fields)")
    given: Any = asked.input if asked.prompt is None else asked.prompt
    request = _Asked(
        ref=asked.model,
        caller=caller or asked.user or "",
        inputs=given if isinstance(given, list) else [given],
        sampling=asked.sampling_request(asked.max_tokens, asked.logprobs),
        has_logprobs=asked.logprobs is not None,
        is_stream=asked.stream,
        wants_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )
    return await _answer(request, context, CompletionShape(context.token_texts))


@router.post(
    "/v1/chat/completions",
    dependencies=[allow("infer")],
    response_model=None,
    responses={**gives(ChatAnswer, is_versioned=True, content=_STREAM), **refusals(*EVERY_REFUSAL)},
)
async def chat(asked: ChatRequest, context: Context, caller: Caller) -> Response:
    """The same, as a chat of one user message."""
    asked.check_supported(tools=asked.tools, tool_choice=asked.tool_choice, response_format=asked.response_format)
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    request = _Asked(
        ref=asked.model,
        caller=caller or asked.user or "",
        inputs=[_chat_input(asked)],
        sampling=asked.sampling_request(limit, (asked.top_logprobs or 0) if asked.logprobs else None),
        has_logprobs=bool(asked.logprobs),
        is_stream=asked.stream,
        wants_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )
    return await _answer(request, context, ChatShape(context.token_texts))


@router.get(
    "/v1/models",
    dependencies=[allow("infer")],
    response_model=None,
    responses={**gives(ModelList), **refusals(401, 403, 429)},
)
async def list_models(context: Context) -> dict[str, Any]:
    """The aliases that are served; any version by number or digest can be asked for as well."""
    targets = context.follower.table.targets
    return {"object": "list", "data": [model_body(target) for _, target in sorted(targets.items())]}


@router.get(
    "/v1/models/{ref:path}",
    dependencies=[allow("infer")],
    response_model=None,
    responses={**gives(Model, is_versioned=True), **refusals(400, 401, 403, 404, 409, 429, 503)},
)
async def show_model(ref: str, context: Context) -> JSONResponse:
    """What a ref names now; an alias, the version in place, since clients keep to what they learn here."""
    async with context.service.resolver.holding(ref, may_try=False) as target:
        return JSONResponse(model_body(target, ref), headers=version_headers([target]))


def _chat_input(asked: ChatRequest) -> Input:
    if asked.input is not None:
        if asked.messages:
            raise InvalidInputError("send either messages or input, not both")
        return asked.input
    if len(asked.messages) != 1 or asked.messages[0].role != "user":
        raise InvalidInputError(
            "send exactly one message, with the role user: a soft prompt's task has one template, "
            "which has no place for other turns or a system message"
        )
    return asked.messages[0].text


async def _answer(asked: _Asked, context: ServerContext, shape: Shape) -> Response:
    if asked.is_stream and len(asked.inputs) != 1:
        raise InvalidInputError(f"a stream takes one prompt, not {len(asked.inputs)}; send one request each")
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(context.service.resolver.holding(asked.ref, asked.caller))
        headers = version_headers([target])
        if target.prompt.task.kind == "classification":
            answers = await _labels(asked, context, target)
            if asked.is_stream:
                return _replayed(asked, target, shape, answers)
        elif asked.is_stream:
            pieces = await _start_stream(asked, context, target, stack)
            envelope = Envelope(asked.ref, target, shape.prefix, shape.chunk_object, pieces.is_truncated)
            return _HeldStream(_chunks(asked, shape, envelope, pieces), headers, stack.pop_all())
        else:
            answers = await _texts(asked, context, target)
    is_truncated = any(answer.is_truncated for answer in answers)
    envelope = Envelope(asked.ref, target, shape.prefix, shape.object, is_truncated)
    choices = [shape.choice(index, answer, has_logprobs=asked.has_logprobs) for index, answer in enumerate(answers)]
    return JSONResponse(envelope.wrap(choices, usage_of(answers)), headers=headers)


async def _labels(asked: _Asked, context: ServerContext, target: Target) -> list[Whole]:
    """A classification task's answer is its likeliest label's text, never free generation."""
    said = {label.name: label.verbaliser for label in target.prompt.task.labels}
    answers = []
    for each in await context.service.classify_under([(asked.ref, target)], asked.inputs):
        by_text = {said[name]: value for name, value in each.probabilities.items()}
        text = said[each.label]
        answers.append(Whole(each.input_tokens, text, reason="stop", by_text=by_text, is_truncated=each.is_truncated))
    return answers


async def _texts(asked: _Asked, context: ServerContext, target: Target) -> list[Whole]:
    async def one(encoded: Encoded, pieces: AsyncIterator[Piece]) -> Whole:
        answer = Whole(len(encoded.ids), is_truncated=encoded.is_truncated)
        async for piece in pieces:
            answer.add(piece)
        return answer

    ready = await context.service.ready(target, asked.inputs, asked.sampling)
    with context.service.generating(target, ready) as written:
        try:
            async with asyncio.TaskGroup() as group:
                pairs = zip(ready, written, strict=True)
                tasks = [group.create_task(one(encoded, pieces)) for (encoded, _), pieces in pairs]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


@dataclass(slots=True)
class _Started:
    """A stream whose first piece is there, so that what can be refused has been, with a proper status."""

    read: int
    is_truncated: bool
    first: Piece
    rest: AsyncGenerator[Piece]


async def _start_stream(asked: _Asked, context: ServerContext, target: Target, held: AsyncExitStack) -> _Started:
    """held: keeps the place in the batch."""
    ready = await context.service.ready(target, asked.inputs, asked.sampling)
    (pieces,) = held.enter_context(context.service.generating(target, ready))
    held.push_async_callback(pieces.aclose)
    encoded, _ = ready[0]
    return _Started(len(encoded.ids), encoded.is_truncated, await anext(pieces), pieces)


class _HeldStream(StreamingResponse):
    """Lets go of the version, and of the place in the batch, when the answer is out or the client has left."""

    def __init__(self, chunks: AsyncIterator[bytes], headers: dict[str, str], held: AsyncExitStack) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _chunks(asked: _Asked, shape: Shape, envelope: Envelope, started: _Started) -> AsyncIterator[bytes]:
    answer = Whole(started.read)

    def chunk(piece: Piece) -> bytes:
        body = shape.chunk(piece, answer, has_logprobs=asked.has_logprobs)
        answer.add(piece)
        return server_sent(envelope.wrap([body]))

    try:
        if (first := shape.first_chunk()) is not None:
            yield server_sent(envelope.wrap([first]))
        yield chunk(started.first)
        async for piece in started.rest:
            yield chunk(piece)
        if asked.wants_usage:
            yield server_sent(envelope.usage([answer]))
        yield STREAM_END
    except Exception as error:  # noqa: BLE001 - the status is out already; the error goes into the stream
        yield server_sent(describe(error)[1])


def _replayed(asked: _Asked, target: Target, shape: Shape, answers: Sequence[Whole]) -> Response:
    """A label as a stream of one piece."""
    envelope = Envelope(asked.ref, target, shape.prefix, shape.chunk_object, answers[0].is_truncated)
    piece = Piece(answers[0].text, reason="stop")
    chunks = [shape.first_chunk(), shape.chunk(piece, answers[0], has_logprobs=asked.has_logprobs)]
    lines = [server_sent(envelope.wrap([chunk])) for chunk in chunks if chunk is not None]
    if asked.wants_usage:
        lines.append(server_sent(envelope.usage(answers)))
    return Response(b"".join(lines) + STREAM_END, media_type="text/event-stream", headers=version_headers([target]))
