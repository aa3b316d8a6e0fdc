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
