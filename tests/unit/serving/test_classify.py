import httpx
import pytest

from promptstore.core.ref import PromptRef
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_log_probabilities
from promptstore.testing.served import LiveServer


def _expected(server: LiveServer, model: FrozenModel, task: str, row: dict[str, str]) -> dict[str, float]:
    """The same answer by the plain way: pull, encode, one row from input embeddings."""
    import torch

    pulled = server.context.follower.pull(
        PromptRef.parse(task), server.context.follower.table.state.resolve(PromptRef.parse(task))
    )
    batch = lay_out(model, [torch.tensor(pulled.prompt.embeddings)], [pulled.encoder.encode(row)])
    scores = label_log_probabilities(model, batch, pulled.label_token_ids).exp()[0].tolist()
    return dict(zip(pulled.task.label_names, scores, strict=True))


def test_one_text_gets_its_label_and_every_labels_probability(
    client: httpx.Client, server: LiveServer, model: FrozenModel
) -> None:
    answer = client.post("/v1/classify", json={"model": "sentiment", "input": "a great film"})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    expected = _expected(server, model, "sentiment", {"text": "a great film"})
    assert result["probabilities"] == pytest.approx(expected, abs=1e-4)
    assert result["label"] == max(expected, key=lambda name: expected[name])
    assert result["version"] == 1
    assert answer.headers["x-promptstore-version"] == "sentiment:1"
    assert answer.headers["x-promptstore-digest"] == result["digest"]
    assert answer.headers["x-promptstore-alias"] == result["alias"] == "production"


def test_many_texts_under_many_tasks_come_in_order_and_each_names_its_version(
    client: httpx.Client, server: LiveServer, model: FrozenModel
) -> None:
    texts = ["a great film", "the match ended two to one", "x"]
    answer = client.post("/v1/classify", json={"model": ["sentiment", "topic@production"], "input": texts})
    results = answer.json()["results"]
    assert [(each["index"], each["task"]) for each in results] == [
        (index, task) for index in range(3) for task in ("sentiment", "topic")
    ]
    assert answer.headers["x-promptstore-version"] == "sentiment:1, topic:1"
    for each in results:
        expected = _expected(server, model, each["task"], {"text": texts[each["index"]]})
        assert each["probabilities"] == pytest.approx(expected, abs=1e-4)


def test_a_task_of_several_fields_takes_them_by_name(
    client: httpx.Client, server: LiveServer, model: FrozenModel
) -> None:
    row = {"premise": "it rains", "hypothesis": "it is wet"}
    answer = client.post("/v1/classify", json={"model": "entailment", "input": row})
    (result,) = answer.json()["results"]
    assert result["probabilities"] == pytest.approx(_expected(server, model, "entailment", row), abs=1e-4)


def test_a_version_may_be_named_by_alias_number_or_digest(client: httpx.Client) -> None:
    by_alias = client.post("/v1/classify", json={"model": "topic", "input": "x"})
    digest = by_alias.headers["x-promptstore-digest"]
    for ref in ("topic@production", "topic:1", f"topic@{digest}"):
        answer = client.post("/v1/classify", json={"model": ref, "input": "x"})
        assert answer.headers["x-promptstore-digest"] == digest
        assert answer.json()["results"][0]["probabilities"] == by_alias.json()["results"][0]["probabilities"]
        is_alias = ref == "topic@production"
        assert answer.headers["x-promptstore-alias"] == ("production" if is_alias else "-")


def test_a_text_that_is_too_long_is_cut_as_in_training_and_the_answer_says_so(
    client: httpx.Client, server: LiveServer, model: FrozenModel
) -> None:
    text = "good news " * 200
    answer = client.post("/v1/classify", json={"model": "sentiment", "input": [text, "good"]})
    long, short = answer.json()["results"]
    assert (long["is_truncated"], short["is_truncated"]) == (True, False)
    assert long["probabilities"] == pytest.approx(_expected(server, model, "sentiment", {"text": text}), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"model": "nothing", "input": "x"}, 404, "model_not_found", "nothing"),
        ({"model": "sentiment@staging", "input": "x"}, 404, "model_not_found", "staging"),
        ({"model": "sentiment:7", "input": "x"}, 404, "model_not_found", "sentiment:7"),
        ({"model": "SENTIMENT", "input": "x"}, 400, "invalid_input", "task name"),
        ({"model": "answer", "input": "x"}, 400, "invalid_input", "/v1/completions"),
        ({"model": "entailment", "input": "x"}, 400, "invalid_input", "premise, hypothesis"),
        ({"model": "sentiment", "input": {"words": "x"}}, 400, "invalid_input", "words"),
        ({"model": "entailment", "input": {"premise": "x"}}, 400, "invalid_input", "hypothesis"),
        ({"model": "sentiment", "input": 7}, 400, "invalid_request", "input"),
        ({"model": "sentiment", "input": []}, 400, "invalid_request", "input"),
        ({"model": [], "input": "x"}, 400, "invalid_request", "model"),
        ({"input": "x"}, 400, "invalid_request", "model"),
        ({"model": "sentiment", "input": "x", "inputs": "y"}, 400, "invalid_request", "inputs"),
        ({"model": "sentiment", "input": ["x"] * 257}, 400, "invalid_input", "257"),
        ({"model": "sentiment", "input": "x" * 100_001}, 400, "invalid_input", "100001"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    client: httpx.Client, body: dict[str, object], status: int, code: str, says: str
) -> None:
    answer = client.post("/v1/classify", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


def test_an_empty_text_is_answered_by_the_template_alone(
    client: httpx.Client, server: LiveServer, model: FrozenModel
) -> None:
    (result,) = client.post("/v1/classify", json={"model": "sentiment", "input": ""}).json()["results"]
    assert result["probabilities"] == pytest.approx(_expected(server, model, "sentiment", {"text": ""}), abs=1e-4)


@pytest.mark.parametrize("content", [b"{", b"", b"null", b"[1]", b'"x"', b"\xff\xfe", b'{"model": NaN}'])
def test_a_body_that_is_no_request_is_400(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_unknown_paths_and_methods_answer_in_the_same_form(client: httpx.Client) -> None:
    assert client.get("/v2/nothing").json()["error"]["code"] == "not_found"
    wrong = client.get("/v1/classify")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"
