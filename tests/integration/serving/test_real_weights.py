"""The promise of `tests/unit/runtime/test_any_batch.py`, on SmolLM2 and real sentences, through a live server.

Requests of any mix, prompts before and after the text, single ones and ensembles, streamed and whole, arrive at any
time while aliases move and prompts leave the device for memory and disk; every answer must be what the version that it
names gives alone, computed from input embeddings with nothing kept. `make test-mixes` does it for longer.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import torch

from promptstore.core.prompt import SoftPrompt
from promptstore.core.ref import PromptRef
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.runtime.bank import Budgets
from promptstore.runtime.cached import CachedDecoding, PackedDecoding
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.row import Decoding
from promptstore.runtime.sampling import Sampling
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.loaded import load_prompt
from promptstore.serving.options import ServerOptions
from promptstore.serving.service import softmax
from promptstore.settings import load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.broken_layouts import NeighboursPrompt, PaddingCounted
from promptstore.testing.engine_rig import EngineRig, random_prompt
from promptstore.testing.served import ANSWER, SENTIMENT, TOPIC, LiveServer, live_server, new_store

pytestmark = pytest.mark.lm

AFTER = replace(SENTIMENT, name="after", placement="after")
TASKS = {task.name: replace(task, max_input_tokens=48) for task in (SENTIMENT, TOPIC, ANSWER, AFTER)}
PROMPT_LENGTHS = (1, 12, 40)
TEXT = (
    "A gripping, beautifully shot film that stays with you. The battery died after two days and nobody answered my "
    "mails. Müller scored twice — 3:1 — and the crowd went home singing. 🙂 The senator's proposal deserves a hearing, "
    "whatever one thinks of its author; the alternative is more talk."
)
# How many mixes of requests are asked, each from a seed of its own, and how many requests are in each.
MIXES = int(os.environ.get("PROMPTSTORE_TEST_MIXES", "2"))
REQUESTS = int(os.environ.get("PROMPTSTORE_TEST_REQUESTS", "16"))
# On a busy machine a request may wait for minutes: what is asked here is whether answers are right, not when they come.
WAIT_S = 300.0
# Room for the longest prompt and a short one, on the device and off it: prompts keep leaving for memory and disk.
BUDGETS = Budgets(device_bytes=3 << 20, host_bytes=3 << 20)


@pytest.fixture(scope="module")
def model() -> FrozenModel:
    torch.set_num_threads(1)
    return open_model("asset:smollm2-135m", cache_dir=load_settings().cache_dir, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def store(model: FrozenModel) -> PromptStore:
    store = new_store()
    for task in TASKS.values():
        for length in PROMPT_LENGTHS:
            version = store.publish(_prompt(model, task, length), task, reason="test")
            store.promote(str(version), reason="test", force=True)
    return store


def _prompt(model: FrozenModel, task: TaskSpec, length: int) -> SoftPrompt:
    """Of classifications, the shortest is an ensemble."""
    if task.kind == "classification" and length == PROMPT_LENGTHS[0]:
        return SoftPrompt.together([random_prompt(model, length, seed=seed) for seed in range(3)])
    return random_prompt(model, length, seed=length + len(task.name))


@dataclass(slots=True)
class Oracle:
    """Every version's answer to an input that is alone in the world. Remembers, for it is slow."""

    model: FrozenModel
    store: PromptStore
    known: dict[tuple[str, str, Sampling | None], Any] = field(default_factory=dict)

    def probabilities(self, version: str, text: str) -> dict[str, float]:
        return dict(self._ask(version, text, None))

    def written(self, version: str, text: str, sampling: Sampling) -> tuple[str, list[float]]:
        """The text and its tokens' log-probabilities."""
        answer = self._ask(version, text, sampling)
        return answer.text, [token.logprob for token in answer.tokens]

    def _ask(self, version: str, text: str, sampling: Sampling | None) -> Any:
        key = (version, text, sampling)
        if key not in self.known:
            prompt = load_prompt(self.store.pull(version, for_model=self.model.fingerprint), self.model)
            after = {version} if prompt.task.placement == "after" else set()
            rig = EngineRig(self.model, RecomputedDecoding(self.model), {version: prompt.prompt}, after=after)
            ids = prompt.encoder.encode(prompt.row(text))
            if sampling is not None:
                self.known[key] = rig.answer(rig.generate(version, ids, sampling))
            else:
                logits = rig.answer(rig.score(version, ids, prompt.label_token_ids)).logits
                self.known[key] = zip(prompt.task.label_names, softmax(logits or ()), strict=True)
                self.known[key] = dict(self.known[key])
        return self.known[key]


@pytest.fixture(scope="module")
def oracle(model: FrozenModel, store: PromptStore) -> Oracle:
    return Oracle(model, store)


@pytest.fixture(scope="module")
def live(store: PromptStore, model: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    spill = tmp_path_factory.mktemp("prepared")
    limits = SchedulerLimits(queue_timeout_s=WAIT_S)
    options = ServerOptions(poll_s=0.02, budgets=BUDGETS, parallel_batches=2, scheduler=limits)
    with live_server(store, model, options, spill_folder=spill) as found:
        yield found
        assert any(spill.iterdir()), "no prompt ever went to disk"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. sampling: `None` for labels. after_s: how long it waits before it arrives."""

    ref: str
    text: str
    sampling: Sampling | None
    after_s: float
    is_streamed: bool = False


def _random_request(rng: random.Random) -> Asked:
    task = rng.choice(list(TASKS))
    words = TEXT.split()
    start = rng.randrange(len(words))
    text = " ".join(words[start : start + rng.choice([0, 1, 3, 8, 20, 60])])
    is_sampled = rng.random() < 0.4
    sampling = Sampling(
        rng.randint(1, 5),
        0.8 * is_sampled,
        rng.choice([1.0, 0.8]),
        stop=rng.choice([(), (" the", "\n"), (".",)]),
        seed=rng.randrange(100),
        top_logprobs=rng.choice([None, 0, 2]),
    )
    ref = rng.choice([task, task, f"{task}:{rng.randint(1, len(PROMPT_LENGTHS))}"])
    after_s, is_streamed = rng.choice([0.0, 0.0, 0.3, 1.0]), rng.random() < 0.5
    return Asked(ref, text, sampling, after_s, is_streamed) if task == "answer" else Asked(ref, text, None, after_s)


def check_mixed_traffic(live: LiveServer, store: PromptStore, oracle: Oracle, rng: random.Random, count: int) -> int:
    """Asks `count` random requests at once while aliases move; compares each. Returns how many versions answered."""
    asked = [_random_request(rng) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool, httpx.Client(base_url=live.url, timeout=WAIT_S) as client:
        answers = [pool.submit(_ask, client, each) for each in asked]
        while not all(answer.done() for answer in answers):
            version = PromptRef(rng.choice(list(TASKS)), number=rng.randint(1, len(PROMPT_LENGTHS)))
            store.promote(version, reason="test", force=True)
            time.sleep(0.1)
    seen = set()
    for each, answer in zip(asked, (answer.result() for answer in answers), strict=True):
        assert answer.status_code == 200, answer.text
        version_name = answer.headers["x-promptstore-version"]
        seen.add(version_name)
        if each.sampling is None:
            expected = oracle.probabilities(version_name, each.text)
            assert answer.json()["results"][0]["probabilities"] == pytest.approx(expected, abs=1e-4), each
            continue
        choices = _choices(answer, is_streamed=each.is_streamed)
        text, logprobs = oracle.written(version_name, each.text, each.sampling)
        assert "".join(choice["text"] for choice in choices) == text, each
        if each.sampling.top_logprobs is not None:
            found = [
                value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]
            ]
            assert found == pytest.approx(logprobs, abs=1e-4), each
    return len(seen)


def _choices(answer: httpx.Response, *, is_streamed: bool) -> list[dict[str, Any]]:
    """The whole answer, or its pieces in order."""
    if not is_streamed:
        return [answer.json()["choices"][0]]
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def _ask(client: httpx.Client, asked: Asked) -> httpx.Response:
    time.sleep(asked.after_s)
    if asked.sampling is None:
        return client.post("/v1/classify", json={"model": asked.ref, "input": asked.text})
    options = {name: getattr(asked.sampling, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    others = {"stop": list(asked.sampling.stop), "logprobs": asked.sampling.top_logprobs, "stream": asked.is_streamed}
    return client.post("/v1/completions", json={"model": asked.ref, "prompt": asked.text, **options, **others})


def _lay_out(live: LiveServer, decoding: Decoding) -> None:
    """Makes the idle server's engines lay their batches out by `decoding`."""
    scheduler: Any = live.context.scheduler

    def replace_decoding() -> None:
        for engine in scheduler._engines:
            engine._decoding = decoding
            engine._running = decoding.start()

    scheduler.call(replace_decoding).result()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model_in(request: pytest.FixtureRequest) -> FrozenModel:
    cache = load_settings().cache_dir
    return open_model("asset:smollm2-135m", cache_dir=cache, device="cpu", dtype=str(request.param))


def test_smollm2_is_served_with_prompt_keys_and_values_and_packed_inputs(model_in: FrozenModel) -> None:
    decoding, reason = choose_decoding(model_in)
    assert isinstance(decoding, PackedDecoding), reason


def test_a_broken_layout_is_not_chosen(model_in: FrozenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptstore.runtime.decoding.PackedDecoding", NeighboursPrompt)
    monkeypatch.setattr("promptstore.runtime.decoding.CachedDecoding", PaddingCounted)
    decoding, reason = choose_decoding(model_in)
    assert isinstance(decoding, RecomputedDecoding), reason


@pytest.mark.parametrize(
    ("layout", "seed"), [((PackedDecoding, CachedDecoding)[at % 2], 2 * at) for at in range(MIXES)]
)
def test_every_answer_in_any_mix_equals_the_one_request_answer(
    live: LiveServer, store: PromptStore, model: FrozenModel, oracle: Oracle, layout: type[CachedDecoding], seed: int
) -> None:
    _lay_out(live, layout(model))
    versions = check_mixed_traffic(live, store, oracle, random.Random(seed), count=REQUESTS)
    print(f"{REQUESTS} requests to {versions} versions compared")
    assert versions > 4


@pytest.mark.parametrize("broken", [PaddingCounted, NeighboursPrompt])
def test_the_same_comparison_fails_for_a_broken_layout(
    live: LiveServer, store: PromptStore, model: FrozenModel, oracle: Oracle, broken: type[CachedDecoding]
) -> None:
    _lay_out(live, broken(model))
    with pytest.raises(AssertionError, match="Asked"):
        check_mixed_traffic(live, store, oracle, random.Random(2), count=16)
