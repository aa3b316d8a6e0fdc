"""What the gateway must keep in front of any vLLM: subclass `VllmContract` and give it a `vllm` fixture."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from openai import OpenAI

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import Label, TaskSpec
from promptstore.lm.end_tokens import end_token_ids
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.input_layer import InputLayer
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.row import Decoding
from promptstore.runtime.sampling import Sampling
from promptstore.serving.loaded import LoadedPrompt, load_prompt
from promptstore.serving.options import ServerOptions
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import Answer, EngineRig, random_prompt
from promptstore.testing.served import ANSWER, DATA, SENTIMENT, LiveServer, live_gateway, new_store

VERDICT = TaskSpec(
    name="verdict",
    kind="classification",
    template="Text: {text}\nVerdict:",
    data=DATA,
    labels=(Label("for", "good and true"), Label("against", "bad and false"), Label("neither", "neutral of it")),
    placement="after",
)
TASKS = (SENTIMENT, VERDICT, ANSWER)
VERSIONS = (1, 2, 3)
# More than a block of vLLM's prefix cache, so that prompts are what is cached.
VIRTUAL_TOKENS = 40
TEXTS = ("a great film", "my new phone arrived quickly, works well", "taxes before the election — 3:1 🙂", "x")
WRITTEN = TEXTS[:3]
TOKENS = 6
PROMOTIONS = 12
START_S = 300.0


@dataclass(frozen=True, slots=True)
class VllmPlace:
    """A vLLM that listens. model: the one it runs, here, in float32. tolerance: of a probability."""

    url: str
    model: FrozenModel
    layer: InputLayer
    tolerance: float = 1e-4

    @property
    def options(self) -> ServerOptions:
        return ServerOptions(poll_s=0.02, engine="vllm", vllm_url=self.url)


def input_layer_of(model: FrozenModel) -> InputLayer:
    """What a gateway would load of `model`."""
    ends = end_token_ids(model.tokenizer, getattr(model.network, "generation_config", None))
    layer = model.network.get_input_embeddings()
    return InputLayer(layer, model.tokenizer, model.fingerprint, model.max_length, ends)


def prompts_for(model: FrozenModel) -> PromptStore:
    """A store with some versions of each task, the first in production; the last of a label task is an ensemble."""
    store = new_store()
    for task in TASKS:
        for number in VERSIONS:
            prompt = random_prompt(model, VIRTUAL_TOKENS, 10 * number + len(task.name))
            if number == VERSIONS[-1] and task.kind == "classification":
                prompt = SoftPrompt.together([prompt, random_prompt(model, VIRTUAL_TOKENS, 10 * number)])
            store.publish(prompt, task, reason="test")
        store.promote(f"{task.name}:1", "production", reason="test", force=True)
    return store


@dataclass(slots=True)
class OwnAnswers:
    """Every version's answers by the own engine, one input at a time; kept, because they cost forward passes."""

    model: FrozenModel
    store: PromptStore
    decoding: Decoding
    _known: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def probabilities(self, version: str, text: str) -> list[float]:
        logits = self._answer(version, text).logits
        assert logits is not None
        weights = [math.exp(value - max(logits)) for value in logits]
        return [weight / sum(weights) for weight in weights]

    def generated(self, version: str, text: str) -> Answer:
        return self._answer(version, text)

    def _answer(self, version: str, text: str) -> Answer:
        if (version, text) not in self._known:
            prompt: LoadedPrompt = load_prompt(self.store.pull(version, for_model=self.model.fingerprint), self.model)
            after = (version,) if prompt.is_after else ()
            rig = EngineRig(self.model, self.decoding, {version: prompt.prompt}, after=after)
            ids = prompt.encoder.encode(prompt.row(text))
            asked = (
                rig.generate(version, ids, Sampling(TOKENS, top_logprobs=2))
                if prompt.task.kind == "generation"
                else rig.score(version, ids, prompt.label_token_ids)
            )
            self._known[version, text] = rig.answer(asked)
        return self._known[version, text]


class VllmContract:
    """The tests of the gateway in front of a vLLM that has a prefix cache and takes prompt embeddings.

    A subclass defines a fixture `vllm`, of class scope.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def vllm(cls) -> VllmPlace:
        raise NotImplementedError("a subclass gives the server")

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, vllm: VllmPlace) -> PromptStore:
        return prompts_for(vllm.model)

    @pytest.fixture(scope="class")
    @classmethod
    def own(cls, vllm: VllmPlace, store: PromptStore) -> OwnAnswers:
        return OwnAnswers(vllm.model, store, choose_decoding(vllm.model)[0])

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, vllm: VllmPlace, store: PromptStore) -> Iterator[LiveServer]:
        with live_gateway(store, vllm.layer, vllm.options) as live:
            # A real one may take a minute for the first input of its life.
            deadline = time.monotonic() + START_S
            while live.context.scheduler.problem is not None and time.monotonic() < deadline:
                time.sleep(0.02)
            yield live

    @pytest.fixture(scope="class")
    @classmethod
    def api(cls, gateway: LiveServer) -> OpenAI:
        return OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=120)

    def test_it_is_ready(self, gateway: LiveServer) -> None:
        answer = httpx.get(f"{gateway.url}/readyz", timeout=60)
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")

    def test_label_probabilities_equal_the_own_engines(
        self, vllm: VllmPlace, gateway: LiveServer, own: OwnAnswers
    ) -> None:
        asked = [(task.name, number) for task in (SENTIMENT, VERDICT) for number in VERSIONS]
        body = {"model": [f"{task}:{number}" for task, number in asked], "input": list(TEXTS)}
        results = _answered(httpx.post(f"{gateway.url}/v1/classify", json=body, timeout=120))["results"]
        assert len(results) == len(asked) * len(TEXTS)
        for result in results:
            expected = own.probabilities(f"{result['task']}:{result['version']}", TEXTS[result["index"]])
            assert list(result["probabilities"].values()) == pytest.approx(expected, abs=vllm.tolerance)

    def test_versions_that_share_inputs_never_mix_in_a_warm_cache(
        self, vllm: VllmPlace, gateway: LiveServer, own: OwnAnswers
    ) -> None:
        text = TEXTS[1]
        alone = {number: own.probabilities(f"sentiment:{number}", text) for number in VERSIONS}
        apart = [abs(alone[a][0] - alone[b][0]) for a in VERSIONS for b in VERSIONS if a < b]
        assert min(apart) > 10 * vllm.tolerance, "the versions must differ, or mixing would not show"

        def ask(number: int) -> tuple[int, list[float]]:
            body = {"model": f"sentiment:{number}", "input": text}
            (result,) = _answered(httpx.post(f"{gateway.url}/v1/classify", json=body, timeout=120))["results"]
            return number, list(result["probabilities"].values())

        one_by_one = [ask(number) for number in VERSIONS * 2]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(ask, VERSIONS * 4))
        for number, probabilities in one_by_one + together:
            assert probabilities == pytest.approx(alone[number], abs=vllm.tolerance)

    def test_greedy_text_equals_the_own_engines(self, gateway: LiveServer, own: OwnAnswers) -> None:
        def ask(number: int) -> list[str]:
            body = {"model": f"answer:{number}", "prompt": list(WRITTEN), "max_tokens": TOKENS}
            answer = _answered(httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=120))
            return [choice["text"] for choice in answer["choices"]]

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(ask, VERSIONS))
        for number, texts in zip(VERSIONS, answers, strict=True):
            assert texts == [own.generated(f"answer:{number}", text).text for text in WRITTEN]

    def test_the_openai_client_streams_the_same_text_piece_by_piece(self, api: OpenAI, own: OwnAnswers) -> None:
        stream = api.completions.create(
            model="answer:2", prompt=TEXTS[0], max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        expected = own.generated("answer:2", TEXTS[0])
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected.text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(expected.tokens)
        assert len(chunks) > len(expected.tokens)

    def test_log_probabilities_are_those_of_the_own_engine(self, vllm: VllmPlace, api: OpenAI, own: OwnAnswers) -> None:
        answer = api.completions.create(model="answer:1", prompt=TEXTS[0], max_tokens=TOKENS, logprobs=2)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        expected = own.generated("answer:1", TEXTS[0]).tokens
        tolerance = 10 * vllm.tolerance
        assert logprobs.token_logprobs == pytest.approx([token.logprob for token in expected], abs=tolerance)
        for said, token in zip(logprobs.top_logprobs or (), expected, strict=True):
            # By text: two tokens of half a character each have the same one.
            top = [pytest.approx(value, abs=tolerance) for _, value in token.top]
            assert said
            assert all(value in top for value in said.values())

    def test_a_stop_text_ends_the_answer_before_it(self, api: OpenAI, own: OwnAnswers) -> None:
        text = own.generated("answer:3", TEXTS[2]).text
        stop = text[2:4]
        choice = api.completions.create(model="answer:3", prompt=TEXTS[2], max_tokens=TOKENS, stop=[stop]).choices[0]
        assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")

    def test_equal_seeds_give_equal_answers(self, api: OpenAI) -> None:
        texts = [
            api.completions.create(model="answer", prompt=TEXTS[1], max_tokens=TOKENS, temperature=1.0, seed=seed)
            .choices[0]
            .text
            for seed in (5, 5, 6, 7, 8)
        ]
        assert texts[0] == texts[1]
        assert len(set(texts)) > 1

    def test_a_prompt_of_another_model_is_refused(self, gateway: LiveServer, store: PromptStore) -> None:
        mine = store.pull("sentiment:1", for_model=None).prompt
        other = SoftPrompt(mine.embeddings, replace(mine.fingerprint, weights_digest="0" * 64))
        foreign = replace(SENTIMENT, name="foreign")
        store.promote(str(store.publish(other, foreign, reason="test")), "production", reason="test", force=True)
        gateway.context.follower.poll()
        answer = httpx.post(f"{gateway.url}/v1/classify", json={"model": "foreign", "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "incompatible_model")

    def test_promotions_in_flight_fail_nothing_and_mix_nothing(
        self, vllm: VllmPlace, gateway: LiveServer, store: PromptStore, own: OwnAnswers
    ) -> None:
        alone = {number: own.probabilities(f"verdict:{number}", TEXTS[0]) for number in VERSIONS}
        caller = _Caller(gateway.url, TEXTS[0], alone, vllm.tolerance)
        threads = [threading.Thread(target=caller.run) for _ in range(4)]
        for thread in threads:
            thread.start()
        rng = random.Random(0)
        until = time.monotonic() + 60
        promotions = 0
        while promotions < PROMOTIONS or (len(caller.seen) < len(VERSIONS) and time.monotonic() < until):
            store.promote(f"verdict:{rng.choice(VERSIONS)}", reason="test", force=True)
            promotions += 1
            time.sleep(0.1)
        caller.stopped.set()
        for thread in threads:
            thread.join()
        print(f"{promotions} promotions, answers by version: {dict(sorted(caller.seen.items()))}")  # noqa: T201
        assert caller.wrong == []
        assert len(caller.seen) == len(VERSIONS), "every version must have answered, or nothing was switched"


@dataclass(slots=True)
class _Caller:
    """Asks by alias until stopped, and checks every answer against the version that it names."""

    url: str
    text: str
    expected: dict[int, list[float]]
    tolerance: float
    stopped: threading.Event = field(default_factory=threading.Event)
    seen: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as client:
            while not self.stopped.is_set():
                answer = client.post("/v1/classify", json={"model": "verdict", "input": self.text})
                if answer.status_code != httpx.codes.OK:
                    self.wrong.append(answer.text)
                    continue
                (result,) = answer.json()["results"]
                self.seen[result["version"]] += 1
                self._check(result["version"], list(result["probabilities"].values()))

    def _check(self, version: int, probabilities: Sequence[float]) -> None:
        if probabilities != pytest.approx(self.expected[version], abs=self.tolerance):
            self.wrong.append(f"verdict:{version} said {probabilities}, not {self.expected[version]}")


def _answered(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()
