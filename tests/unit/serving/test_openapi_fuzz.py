"""Whatever the interface's own description allows, and what it does not, is answered, and never by a failure."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptstore.lm.frozen import FrozenModel
from promptstore.serving import answers
from promptstore.serving.context import CALLER_HEADER
from promptstore.serving.failures import error_body, error_response
from promptstore.serving.options import ServerOptions
from promptstore.store.rollout import start_rollout
from promptstore.testing.described import Described
from promptstore.testing.json_schema import JSON, header_values, values_of
from promptstore.testing.served import LiveServer, live_server, store_of_candidates

# What the server may say to any request that is not its own fault. 429: the fuzz may ask for more than the queue takes.
EXPECTED = {200, 400, 404, 409, 413, 429}
REFS = ["sentiment", "topic@production", "answer:1", "entailment", "nothing", "sentiment:9", "UPPER", "a@b@c", ""]
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATHS = ["/v1/classify", "/v1/completions", "/v1/chat/completions"]
PROBES = {"/healthz", "/readyz"}
JSON_SENT = {"content-type": "application/json"}
Check = Callable[[httpx.Response], None]


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> Any:
    return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def described(description: Any) -> Described:
    return Described(description)


@pytest.fixture(scope="module")
def check(described: Described) -> Check:
    """What every answer is, whatever was asked."""

    def checked(answer: httpx.Response) -> None:
        described.check(answer)
        _check(answer)

    return checked


@pytest.fixture(scope="module")
def trying(model: FrozenModel) -> Iterator[httpx.Client]:
    """A server on which half of the callers get a version on trial."""
    store = store_of_candidates(model)
    start_rollout(store, "sentiment:2", share=0.5)
    with (
        live_server(store, model, ServerOptions(poll_s=3600)) as live,
        httpx.Client(base_url=live.url, timeout=30) as found,
    ):
        yield found


def _schema(description: Any, path: str) -> Any:
    return description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def _check(answer: httpx.Response) -> None:
    assert answer.status_code in EXPECTED, answer.text
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        return
    body = answer.json()
    if answer.status_code != 200:
        answers.ErrorAnswer.model_validate(body)
        assert body["error"]["message"]


def test_every_operation_is_described(description: Any) -> None:
    assert set(PATHS) <= set(description["paths"])
    assert all(
        operation.get("summary") and operation.get("description")
        for path in description["paths"].values()
        for operation in path.values()
    )


ASKED: list[tuple[str, Any]] = [
    ("/v1/classify", {"model": ["sentiment", "topic:1"], "input": ["x", "y"]}),
    ("/v1/completions", {"model": "answer", "prompt": ["x", "y"], "max_tokens": 2, "logprobs": 1}),
    ("/v1/completions", {"model": "sentiment", "prompt": "x", "logprobs": 1}),
    ("/v1/chat/completions", {"model": "answer:1", "messages": [{"role": "user", "content": "x"}], "logprobs": True}),
    ("/admin/refresh", {}),
    ("/v1/models", None),
    ("/v1/models/{ref}", None),
    ("/healthz", None),
    ("/readyz", None),
]


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_answers_are_as_described(client: httpx.Client, described: Described, path: str, body: Any) -> None:
    asked = path.replace("{ref}", "sentiment")
    answer = client.get(asked) if body is None else client.post(asked, json=body)
    operation = described.description["paths"][path]["get" if body is None else "post"]
    assert answer.status_code == 200, answer.text
    described.check(answer)
    name = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    getattr(answers, name).model_validate(answer.json())


def test_refusals_are_described_as_they_are_sent_and_keys_as_they_are_asked_for(description: Any) -> None:
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert ("security" in operation) == ("401" in operation["responses"]) == (path not in PROBES), path
            if path in PATHS:
                refused = {status for status in operation["responses"] if status not in {"200", "default"}}
                assert refused == {"400", "401", "403", "404", "409", "413", "429", "503"}
            for status, response in operation["responses"].items():
                expected = {"401": {"www-authenticate"}, "429": {"retry-after"}, "503": {"retry-after"}}
                named = {"x-request-id"} | expected.get(status, set())
                if path in {*PATHS, "/v1/models/{ref}"} and status == "200":
                    named |= {f"x-promptstore-{part}" for part in ("version", "digest", "alias")}
                assert {name for name, header in response["headers"].items() if header["required"]} == named, path
    (scheme,) = description["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


@pytest.mark.parametrize("path", PATHS)
def test_what_the_description_allows_is_answered(
    client: httpx.Client, description: Any, check: Check, path: str
) -> None:
    @FUZZ
    @given(body=values_of(_schema(description, path), description), ref=st.sampled_from(REFS))
    def fuzz(body: dict[str, Any], ref: str) -> None:
        for value in (body, {**body, "model": ref}):
            check(client.post(path, content=json.dumps(value), headers=JSON_SENT))

    fuzz()


@pytest.mark.parametrize("path", PATHS)
def test_any_caller_is_answered_and_stays_with_one_version(
    trying: httpx.Client, described: Described, check: Check, path: str
) -> None:
    parameters = described.header_parameters("POST", path)
    assert set(parameters) == {CALLER_HEADER}
    body = {"model": "sentiment", "input": {"text": "x"}}

    def ask(callers: list[bytes]) -> str:
        headers = [(name.encode(), caller) for name in parameters for caller in callers]
        answer = trying.post(path, json=body, headers=headers)
        check(answer)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-promptstore-version"])

    @FUZZ
    @given(callers=st.lists(header_values(parameters[CALLER_HEADER]), max_size=3))
    def fuzz(callers: list[bytes]) -> None:
        seen.add(version := ask(callers))
        if callers and callers[0]:
            assert ask(callers) == ask(callers[:1]) == version

    seen: set[str] = set()
    fuzz()
    assert seen == {"sentiment:1", "sentiment:2"}
    assert ask([b"\xc3\xa4" * 10_000]) == ask([b"\xc3\xa4" * 10_000])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text", ["\ud800", "x\ud83d", "\udc00 and \ud83d"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(client: httpx.Client, path: str, text: str) -> None:
    fields = {"/v1/classify": "input", "/v1/completions": "prompt", "/v1/chat/completions": "messages"}
    given: Any = [{"role": "user", "content": text}] if fields[path] == "messages" else text
    for body in (
        {"model": "sentiment", fields[path]: given},
        {"model": "entailment", "input": {"premise": text, "hypothesis": "x"}},
        {"model": "sentiment", "input": {text: "x"}},
        {"model": text, "input": "x"},
        {"model": "sentiment", "input": "x", text: "x"},
    ):
        answer = client.post(path, content=json.dumps(body), headers=JSON_SENT)
        assert answer.status_code == 400, answer.text
        assert "half of a surrogate pair" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_a_body_that_is_nested_too_deeply_is_refused_as_such(
    client: httpx.Client, check: Check, path: str, is_closed: bool, opening: str, closing: str
) -> None:
    for count in (101, 200, 500, *range(900, 1000, 3), 2_000, 100_000):
        nested = opening * count + ("1" + closing * count) * is_closed
        for content in (nested, f'{{"model": "sentiment", "metadata": {{"a": {nested}' + "}}" * is_closed):
            answer = client.post(path, content=content, headers=JSON_SENT)
            check(answer)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", None)
            assert "nested" in error["message"] or not is_closed
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", PATHS[1:])
def test_a_body_may_be_nested_deeper_than_any_request_needs(client: httpx.Client, path: str) -> None:
    """97 lists in `a` in `metadata` in the body are 99 levels: the innermost holds a value still."""
    given: Any = "x"
    for _ in range(97):
        given = [given]
    body = {"model": "sentiment", "input": {"text": "x"}, "metadata": {"a": given}}
    assert client.post(path, json=body).status_code == 200
    assert client.post(path, json={**body, "metadata": {"a": [[given]]}}).status_code == 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"model": ', "Expecting value at character 10"),
        (b"", "Field required"),
        (b"\xff\xff", "utf-8"),
        (b'{"model": 1' + b"0" * 5000 + b"}", "4300 digits"),
    ],
)
def test_a_body_that_is_no_json_is_told_why(client: httpx.Client, check: Check, content: bytes, says: str) -> None:
    answer = client.post("/v1/classify", content=content, headers=JSON_SENT)
    check(answer)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_request", None)
    assert says in error["message"]
    assert "sys." not in error["message"]


def test_an_error_that_quotes_what_utf8_lacks_can_be_sent() -> None:
    body = error_body(400, "invalid_input", "no field x\ud83d", param="x\ud83d")
    assert json.loads(bytes(error_response(400, body).body))["error"]["param"] == "x\\ud83d"


PLAUSIBLE = {
    "model": st.sampled_from(["answer", "answer:1", "sentiment", "topic@production"]),
    "max_tokens": st.integers(1, 6),
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0.01, 1),
    "stop": st.none() | st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "stream": st.booleans(),
    "stream_options": st.none() | st.fixed_dictionaries({"include_usage": st.booleans()}),
    "n": st.sampled_from([None, 1]),
    "user": st.text(max_size=5),
}


@FUZZ
@given(
    body=st.fixed_dictionaries({**PLAUSIBLE, "prompt": st.text(max_size=60), "logprobs": st.none() | st.integers(0, 5)})
)
def test_every_plausible_completion_is_answered(client: httpx.Client, check: Check, body: dict[str, Any]) -> None:
    answer = client.post("/v1/completions", json=body)
    check(answer)
    assert answer.status_code == 200, answer.text


@FUZZ
@given(body=st.fixed_dictionaries({**PLAUSIBLE, "logprobs": st.none() | st.booleans()}), text=st.text(max_size=60))
def test_every_plausible_chat_is_answered(client: httpx.Client, check: Check, body: dict[str, Any], text: str) -> None:
    answer = client.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": text}]})
    check(answer)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", PATHS)
@FUZZ
@given(body=JSON)
def test_any_json_is_answered(client: httpx.Client, check: Check, path: str, body: Any) -> None:
    check(client.post(path, content=json.dumps(body), headers=JSON_SENT))


@FUZZ
@given(content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", "", "a/b; charset=x"]))
def test_any_bytes_are_answered(client: httpx.Client, check: Check, content: bytes, kind: str) -> None:
    check(client.post("/v1/classify", content=content, headers={"content-type": kind}))


@FUZZ
@given(ref=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=40))
def test_any_model_name_is_answered(client: httpx.Client, described: Described, ref: str) -> None:
    answer = client.get(f"/v1/models/{quote(ref, safe='')}")
    assert answer.status_code in {200, 400, 404}
    described.check(answer)


def test_the_server_is_well_after_all_that(server: LiveServer, client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.post("/v1/classify", json={"model": "sentiment", "input": "x"}).status_code == 200
    assert server.context.scheduler.queued == 0
