"""The promise of `tests/unit/runtime/test_any_batch.py`, on SmolLM2 and real sentences, through a live server."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from promptstore.client import Client
from promptstore.core.ref import PromptRef
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.layout import lay_out
from promptstore.lm.scoring import label_log_probabilities
from promptstore.lm.source import open_model
from promptstore.runtime.cached import PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.sampling import Sampling
from promptstore.serving.options import ServerOptions
from promptstore.settings import load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import ANSWER, SENTIMENT, TOPIC, LiveServer, live_server, new_store, publish_random

pytestmark = pytest.mark.lm

TEXTS = [
    "A gripping, beautifully shot film that stays with you.",
    "The battery died after two days and nobody answered my mails.",
    "ok",
    "The senator's proposal deserves a hearing, whatever one thinks of its author; the alternative is more talk.",
    "Müller scored twice — 3:1 — and the crowd went home singing. 🙂",
    "",
]


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    torch.set_num_threads(1)
    return open_model("asset:smollm2-135m", cache_dir=load_settings().cache_dir, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def store(model: FrozenModel) -> PromptStore:
    store = new_store()
    for task in (SENTIMENT, TOPIC, ANSWER):
        for seed in (1, 2, 5):
            publish_random(store, model, task, seed=seed)
    return store


@pytest.fixture(scope="module")
def live(store: PromptStore, model: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store, model, ServerOptions(poll_s=0.05)) as found:
        yield found


def test_smollm2_is_served_with_prompt_keys_and_values_and_packed_inputs(model: FrozenModel) -> None:
    decoding, reason = choose_decoding(model)
    assert isinstance(decoding, PackedDecoding), reason


def test_probabilities_of_mixed_concurrent_requests_equal_the_one_request_answer(
    live: LiveServer, store: PromptStore, model: FrozenModel
) -> None:
    rng = random.Random(0)
    asked = [(rng.choice(["sentiment", "topic"]), rng.randint(1, 3), text) for text in TEXTS * 2]
    with Client(live.url) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: client.classify(f"{each[0]}:{each[1]}", each[2])[0], asked))
    for (task, number, text), answer in zip(asked, answers, strict=True):
        prompt = live.context.follower.pull(
            PromptRef(task, number=number), store.resolve(PromptRef(task, number=number))
        )
        batch = lay_out(model, [torch.tensor(prompt.prompt.embeddings)], [prompt.encoder.encode(prompt.row(text))])
        expected = label_log_probabilities(model, batch, prompt.label_token_ids)[0].exp().tolist()
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-4)


def test_greedy_text_of_mixed_concurrent_requests_equals_the_one_request_text(
    live: LiveServer, store: PromptStore, model: FrozenModel
) -> None:
    asked = [(1 + at % 3, text) for at, text in enumerate(TEXTS)]
    with Client(live.url) as client, ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda each: client.complete(f"answer:{each[0]}", each[1]).text, asked))
    for (number, question), text in zip(asked, texts, strict=True):
        ref = PromptRef("answer", number=number)
        prompt = live.context.follower.pull(ref, store.resolve(ref))
        alone = EngineRig(model, RecomputedDecoding(model), {"alone": prompt.prompt})
        ids = prompt.encoder.encode(prompt.row(question))
        assert text == alone.answer(alone.generate("alone", ids, Sampling(12))).text
