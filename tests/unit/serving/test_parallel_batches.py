"""Batches that are computed at a time answer as one after the other, under prompts that are new to all of them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch

from promptstore.lm.frozen import FrozenModel
from promptstore.serving.options import ServerOptions
from promptstore.testing.served import LiveServer, live_server, store_of

TEXTS = [
    f"{word} " * (1 + at % 5)
    for at, word in enumerate(["good", "bad", "film", "plot", "dull", "fine", "long", "short", "warm", "cold"])
]


def _answers(live: LiveServer, *, at_once: int) -> list[Any]:
    def ask(body: dict[str, Any]) -> Any:
        path = "classify" if "input" in body else "completions"
        answer = httpx.post(f"{live.url}/v1/{path}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    bodies: list[dict[str, Any]] = []
    for text in TEXTS:
        bodies += [{"model": "sentiment", "input": text}, {"model": "answer", "prompt": text, "max_tokens": 6}]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, bodies))


def test_answers_do_not_depend_on_it(model: FrozenModel) -> None:
    weights = model.weights_digest_now()
    with live_server(store_of(model), model, ServerOptions(parallel_batches=1)) as live:
        alone = _answers(live, at_once=1)
    with live_server(store_of(model), model, ServerOptions(parallel_batches=3)) as live:
        assert len(live.context.scheduler._engines) == 3  # type: ignore[attr-defined]
        together = _answers(live, at_once=10)
    for ours, theirs in zip(together, alone, strict=True):
        if "results" in ours:
            assert ours["results"][0]["probabilities"] == pytest.approx(theirs["results"][0]["probabilities"], abs=1e-4)
        else:
            assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]
    assert model.weights_digest_now() == weights


@pytest.mark.parametrize(("threads", "engines"), [(1, 1), (3, 3), (16, 4)])
def test_by_default_a_cpu_takes_as_many_as_it_has_threads_up_to_four(
    model: FrozenModel, monkeypatch: pytest.MonkeyPatch, threads: int, engines: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with live_server(store_of(model), model) as live:
        assert len(live.context.scheduler._engines) == engines  # type: ignore[attr-defined]
