"""Promotions under load: no request fails, and every answer is that of the version it names."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import pytest

from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.sampling import Sampling
from promptstore.serving.loaded import load_prompt
from promptstore.serving.options import ServerOptions
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import ANSWER, SENTIMENT, TOPIC, live_server, new_store, publish_random
from promptstore.testing.tiny_models import tiny_llama

TEXTS = ["a great film", "my new phone arrived quickly", "taxes before the election", "x", "good news " * 9]
VERSIONS = 4
SECONDS = 6.0


@dataclass(slots=True)
class Oracle:
    """Every version's own answers, by an engine that computes each alone from input embeddings."""

    probabilities: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)

    def learn(self, store: PromptStore, model: FrozenModel, version: str) -> None:
        prompt = load_prompt(store.pull(version, for_model=model.fingerprint), model)
        rig = EngineRig(model, RecomputedDecoding(model), {version: prompt.prompt})
        for text in TEXTS:
            ids = prompt.encoder.encode(prompt.row(text))
            if prompt.task.kind == "generation":
                self.texts[version, text] = rig.answer(rig.generate(version, ids, Sampling(8))).text
                continue
            logits = rig.answer(rig.score(version, ids, prompt.label_token_ids)).logits
            assert logits is not None
            weights = [pow(2.718281828459045, value - max(logits)) for value in logits]
            shares = [weight / sum(weights) for weight in weights]
            self.probabilities[version, text] = dict(zip(prompt.task.label_names, shares, strict=True))


@dataclass(slots=True)
class Caller:
    """One client that asks until it is told to stop, and checks every answer against the version it names."""

    url: str
    oracle: Oracle
    seed: int
    stopped: threading.Event
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        rng = random.Random(self.seed)
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stopped.is_set():
                self._ask(client, rng)

    def _ask(self, client: httpx.Client, rng: random.Random) -> None:
        texts = rng.sample(TEXTS, rng.randint(1, len(TEXTS)))
        if rng.random() < 0.3:
            body = {"model": "answer", "prompt": texts, "max_tokens": 8}
            answer = client.post("/v1/completions", json=body)
        else:
            answer = client.post("/v1/classify", json={"model": ["sentiment", "topic"], "input": texts})
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code}: {answer.text}")
            return
        for version in answer.headers["x-promptstore-version"].split(", "):
            self.seen[version] += 1
        self._check(answer, texts)

    def _check(self, answer: httpx.Response, texts: Sequence[str]) -> None:
        body = answer.json()
        named = answer.headers["x-promptstore-version"].split(", ")
        for choice in body.get("choices", []):
            expected = self.oracle.texts[named[0], texts[choice["index"]]]
            if choice["text"] != expected:
                self.wrong.append(f"{named[0]} said {choice['text']!r}, not {expected!r}")
        for result in body.get("results", []):
            version = f"{result['task']}:{result['version']}"
            expected_shares = self.oracle.probabilities[version, texts[result["index"]]]
            if version not in named or result["probabilities"] != pytest.approx(expected_shares, abs=1e-4):
                self.wrong.append(f"{version} said {result['probabilities']}, not {expected_shares}")


def test_no_request_fails_or_is_answered_by_another_version_than_it_names() -> None:
    model = tiny_llama()
    store, oracle = new_store(), Oracle()
    for task in (SENTIMENT, TOPIC, ANSWER):
        for seed in range(VERSIONS):
            version = publish_random(store, model, task, seed=10 * seed + len(task.name))
            oracle.learn(store, model, str(version))
    rng = random.Random(0)
    promotions = 0
    with live_server(store, model, ServerOptions(poll_s=0.01)) as live:
        stopped = threading.Event()
        callers = [Caller(live.url, oracle, seed, stopped) for seed in range(6)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            moved = rng.choice(["sentiment", "topic", "answer"])
            store.promote(f"{moved}:{rng.randint(1, VERSIONS)}", reason="test", force=True)
            promotions += 1
            time.sleep(0.005)
        stopped.set()
        for thread in threads:
            thread.join()
    seen = sum((caller.seen for caller in callers), Counter[str]())
    print(f"{promotions} promotions, {sum(seen.values())} answers by version: {dict(sorted(seen.items()))}")
    assert [wrong for caller in callers for wrong in caller.wrong] == []
    assert promotions > 100
    assert len(seen) == 3 * VERSIONS, "every version must have answered, or nothing was switched under load"
