import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from promptstore.client import AsyncClient, Client, Completion, Retries
from promptstore.client.attempts import Attempts
from promptstore.client.streams import Streamed
from promptstore.errors import (
    CorruptError,
    IncompatibleModelError,
    InvalidInputError,
    NotFoundError,
    NotServingError,
    OverloadedError,
    PromptStoreError,
    RefusedError,
)
from promptstore.serving.api_keys import ApiKey, digest_key
from promptstore.testing.served import LiveServer, live_server, store_of
from promptstore.testing.tiny_models import tiny_llama

QUICK = Retries(attempts=3, first_wait_s=0.001)
LABELLED = {
    "index": 0,
    "task": "t",
    "version": 1,
    "digest": "sha256:00",
    "alias": None,
    "label": "pos",
    "probabilities": {"pos": 1.0},
    "is_truncated": False,
    "added_later": 1,
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    model = tiny_llama()
    keys = [ApiKey("tests", digest_key("secret"), frozenset({"infer"}))]
    with live_server(store_of(model), model, keys=keys) as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    with Client(server.url, api_key="secret", retries=QUICK) as found:
        yield found


def _scripted(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers, one by one."""
    asked: list[httpx.Request] = []
    left = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    return Client(retries=QUICK, transport=httpx.MockTransport(answer)), asked


def _failure(status: int, code: str = "", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "because", "code": code}}, headers=headers)


def test_classify_gives_values_in_order(client: Client) -> None:
    found = client.classify(["sentiment", "topic"], ["a great film", "sport"])
    assert [(each.index, each.task) for each in found] == [
        (0, "sentiment"),
        (0, "topic"),
        (1, "sentiment"),
        (1, "topic"),
    ]
    assert all(each.alias == "production" and each.version == 1 for each in found)
    assert all(sum(each.probabilities.values()) == pytest.approx(1.0) for each in found)


def test_fields_are_sent_by_name(client: Client) -> None:
    (found,) = client.classify("entailment:1", {"premise": "it rains", "hypothesis": "it is wet"})
    assert (found.task, found.alias) == ("entailment", None)


def test_a_stream_gives_the_pieces_of_the_completion(client: Client) -> None:
    whole = client.complete("answer", "who ?", max_tokens=6)
    pieces = list(client.stream("answer", {"question": "who ?"}, max_tokens=6))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1
    assert whole.reason == "length"


def _whole(text: str, stream: Streamed) -> Completion:
    """What a stream that has ended told, as the completion that it was."""
    assert stream.reason is not None
    named = {name: getattr(stream, name) for name in ("task", "version", "digest", "alias", "is_truncated")}
    return Completion(text, stream.reason, **named)


@pytest.mark.parametrize("ref", ["answer", "answer:1", "sentiment"])
@pytest.mark.parametrize("given", ["who ?", "who ? " * 2000])
def test_a_stream_tells_what_writes_it_from_its_first_piece_on_and_why_it_ended_at_the_end(
    client: Client, server: LiveServer, ref: str, given: str
) -> None:
    whole = client.complete(ref, given, max_tokens=6)
    stream = client.stream(ref, given, max_tokens=6)
    assert stream.reason is None
    with pytest.raises(AttributeError, match="from the first piece on"):
        _ = stream.version
    first = next(stream)
    assert (f"{stream.task}:{stream.version}", stream.digest) == (f"{whole.task}:1", whole.digest)
    assert stream.alias == whole.alias == (None if ref == "answer:1" else "production")
    assert _whole(first + "".join(stream), stream) == whole

    async def ask() -> Completion:
        async with AsyncClient(server.url, api_key="secret") as other:
            stream = other.stream(ref, given, max_tokens=6)
            with pytest.raises(AttributeError, match="from the first piece on"):
                _ = stream.version
            first = await anext(stream)
            assert (stream.version, stream.digest) == (1, whole.digest)
            return _whole(first + "".join([piece async for piece in stream]), stream)

    assert asyncio.run(ask()) == whole


def test_a_stream_of_a_longer_answer_has_no_reason_before_its_end_and_can_be_left(
    client: Client, server: LiveServer
) -> None:
    async def leave() -> None:
        async with AsyncClient(server.url, api_key="secret") as other:
            stream = other.stream("answer", "who ?", max_tokens=400)
            assert await anext(stream)
            assert stream.reason is None
            await stream.aclose()
            assert [piece async for piece in stream] == []

    stream = client.stream("answer", "who ?", max_tokens=400)
    assert next(stream)
    assert stream.reason is None
    stream.close()
    assert list(stream) == []
    asyncio.run(leave())
    deadline = time.monotonic() + 20
    while server.context.scheduler.running:
        assert time.monotonic() < deadline, "the server still writes"
        time.sleep(0.01)


def test_the_example_of_the_page_on_serving_runs(server: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "infra" / "docs" / "serving.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    given = code.replace('"http://127.0.0.1:8080"', f'"{server.url}", api_key="secret"')
    assert given != code
    exec(compile(given, str(page), "exec"), {})
    said = capsys.readouterr().out
    assert len(re.findall(r" (sentiment|answer):1 sha256:[0-9a-f]{64} production$", said, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("ref", ["answer", "sentiment"])
def test_a_completion_says_whether_its_input_was_cut(client: Client, server: LiveServer, ref: str) -> None:
    assert [client.complete(ref, text).is_truncated for text in ("why ?", "why ? " * 2000)] == [False, True]
    chat = {"model": ref, "messages": [{"role": "user", "content": "why ? " * 2000}], "stream": True}
    headers = {"authorization": "Bearer secret"}
    streamed = httpx.post(f"{server.url}/v1/chat/completions", json=chat, headers=headers, timeout=60).text
    assert json.loads(streamed.splitlines()[0].removeprefix("data: "))["promptstore"]["is_truncated"] is True


def test_models_are_listed(client: Client) -> None:
    assert [each["id"] for each in client.models()] == ["answer", "entailment", "sentiment", "topic"]


@pytest.mark.parametrize("ref", ["entailment", "entailment:1", "entailment@production"])
def test_what_a_ref_names_is_told_with_what_its_task_reads(client: Client, ref: str) -> None:
    about = client.model(ref)["promptstore"]
    assert client.model(f"entailment@{about['digest']}")["promptstore"]["version"] == 1
    assert (about["kind"], about["fields"], about["labels"]) == (
        "classification",
        ["premise", "hypothesis"],
        ["yes", "no"],
    )
    assert (about["target_field"], about["metric"]) == ("label", "accuracy")


def test_the_asynchronous_client_does_the_same(server: LiveServer, client: Client) -> None:
    async def ask() -> tuple[object, ...]:
        async with AsyncClient(server.url, api_key="secret") as other:
            return (
                await other.classify("sentiment", ["a", "b"]),
                await other.complete("answer", "who ?", max_tokens=4),
                [piece async for piece in other.stream("answer", "who ?", max_tokens=4)],
                await other.models(),
                await other.model("topic"),
            )

    assert asyncio.run(ask()) == (
        client.classify("sentiment", ["a", "b"]),
        client.complete("answer", "who ?", max_tokens=4),
        list(client.stream("answer", "who ?", max_tokens=4)),
        client.models(),
        client.model("topic"),
    )


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda client: client.classify("nothing", "x"), NotFoundError),
        (lambda client: client.classify("NOTHING", "x"), InvalidInputError),
        (lambda client: client.classify("answer", "x"), InvalidInputError),
        (lambda client: list(client.stream("nothing", "x")), NotFoundError),
        (lambda client: client.model("nothing"), NotFoundError),
        (lambda client: client.model("../../metrics"), InvalidInputError),
    ],
)
def test_the_servers_errors_are_this_packages_errors(
    client: Client, ask: Callable[[Client], object], kind: type[PromptStoreError]
) -> None:
    with pytest.raises(kind):
        ask(client)


def test_a_wrong_key_is_refused_at_once(server: LiveServer) -> None:
    with Client(server.url, api_key="wrong") as client, pytest.raises(RefusedError, match="401"):
        client.models()


def test_what_a_server_tells_only_with_a_key_is_an_error_without_one(server: LiveServer, client: Client) -> None:
    assert client.state()["store"]["commit"] > 0
    assert client.trials() == []
    with Client(server.url) as stranger, pytest.raises(RefusedError, match="give api_key"):
        stranger.trials()


def test_a_server_that_is_not_ready_tells_its_state_and_what_stands_before_it_does_not() -> None:
    body = {"status": "draining", "store": {"commit": 3}}
    client, asked = _scripted(httpx.Response(503, json=body))
    assert (client.state(), len(asked)) == (body, 1)
    for other in (httpx.Response(503, text="<html>"), httpx.Response(503, json=["status"]), _failure(503)):
        client, asked = _scripted(other, httpx.Response(200, json=body))
        assert (client.state(), len(asked)) == (body, 2)


@pytest.mark.parametrize(
    "passing", [_failure(429), _failure(503), httpx.ConnectError("refused"), httpx.ReadTimeout("")]
)
def test_a_passing_failure_is_asked_again(passing: httpx.Response | Exception) -> None:
    client, asked = _scripted(passing, httpx.Response(200, json={"results": [LABELLED]}))
    assert client.classify("t", "x")[0].label == "pos"
    assert len(asked) == 2
    assert json.loads(asked[0].content) == json.loads(asked[1].content)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ([_failure(429, "overloaded")] * 3, OverloadedError),
        ([_failure(503, "not_serving")] * 3, NotServingError),
        ([httpx.ConnectError("refused")] * 3, NotServingError),
        ([_failure(409, "incompatible_model")], IncompatibleModelError),
        ([_failure(400)], InvalidInputError),
        ([_failure(500)], PromptStoreError),
        ([httpx.Response(418, text="a teapot")], PromptStoreError),
    ],
)
def test_what_does_not_pass_is_raised_after_as_many_attempts_as_make_sense(
    answers: list[httpx.Response | Exception], kind: type[PromptStoreError]
) -> None:
    client, asked = _scripted(*answers)
    with pytest.raises(kind):
        client.classify("t", "x")
    assert len(asked) == len(answers)


def test_the_server_may_ask_for_a_longer_wait() -> None:
    assert Attempts(QUICK).wait_after_answer(_busy("7")) == 7.0


@pytest.mark.parametrize("asked", ["86400", "9" * 400])
def test_a_server_that_asks_for_a_day_is_asked_again_within_the_clients_own_bound(asked: str) -> None:
    assert Attempts(QUICK).wait_after_answer(_busy(asked)) == QUICK.longest_wait_s


def test_all_attempts_together_have_a_deadline() -> None:
    now = [0.0]
    attempts = Attempts(Retries(attempts=100, deadline_s=25.0), clock=lambda: now[0])
    for _ in range(2):
        now[0] += attempts.wait_after_answer(_busy("10"))
    assert now[0] == 20.0
    with pytest.raises(OverloadedError):
        attempts.wait_after_answer(_busy("10"))
    now[0] = 25.0
    with pytest.raises(NotServingError):
        attempts.wait_after_failure(httpx.ReadTimeout(""), httpx.URL("http://test"))


def _busy(retry_after: str) -> httpx.Response:
    answer = _failure(429, **{"retry-after": retry_after})
    answer.request = httpx.Request("GET", "http://test")
    return answer


def _event(text: str, **changed: object) -> str:
    about = {"task": "t", "version": 1, "digest": "sha256:00", "alias": None, "is_truncated": False}
    choice = {"text": text, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice], 'promptstore': about, **changed})}\n\n"


@pytest.mark.parametrize("end", ['data: {"error": {"message": "gone"}}\n\n', ""])
def test_a_stream_that_breaks_off_is_an_error_not_a_short_answer(end: str) -> None:
    client, _ = _scripted(httpx.Response(200, text=_event("so far") + end))
    stream = client.stream("t", "x")
    assert next(stream) == "so far"
    with pytest.raises(NotServingError, match="broke off"):
        next(stream)
    assert (stream.version, stream.reason) == (1, None)
    assert list(stream) == []


@pytest.mark.parametrize("line", ["data: {", "data: 1\n\n", _event("x", promptstore={}), 'data: {"error": "gone"}'])
def test_a_stream_of_another_kind_of_server_is_refused(line: str) -> None:
    client, _ = _scripted(httpx.Response(200, text=line))
    with pytest.raises(CorruptError, match="no piece of a completion"):
        list(client.stream("t", "x"))


def test_usage_in_a_stream_is_no_piece_of_its_text() -> None:
    last = _event("", choices=[{"text": "", "finish_reason": "stop"}])
    text = _event("all") + last + _event("", choices=[], usage={}) + "data: [DONE]\n\n"
    client, _ = _scripted(httpx.Response(200, text=text))
    stream = client.stream("t", "x")
    assert (list(stream), stream.reason) == (["all"], "stop")
