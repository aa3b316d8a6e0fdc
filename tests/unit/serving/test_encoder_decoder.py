"""An encoder-decoder base over HTTP: each answer is the one that its request gets alone, whatever shares the batch."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import httpx
import pytest

from promptstore.core.task import Label
from promptstore.lm.frozen import FrozenModel
from promptstore.loopback import loopback_client
from promptstore.runtime.recomputed import RecomputedDecoding
from promptstore.runtime.sampling import Sampling
from promptstore.serving.loaded import LoadedPrompt, load_prompt
from promptstore.serving.options import ServerOptions
from promptstore.serving.service import softmax
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig
from promptstore.testing.served import ANSWER, SENTIMENT, LiveServer, live_server, new_store, publish_random
from promptstore.testing.served import TOPIC as DECODER_TOPIC
from promptstore.testing.tiny_models import tiny_t5

# Without the space that a decoder's answers begin with, two of its labels begin with the same token.
TOPIC = replace(DECODER_TOPIC, labels=tuple(Label(name, name) for name in ("news", "sport", "world")))
TEXTS = ["a great film", "my new phone arrived quickly", "taxes before the election", "x", "good news " * 5]
LABEL_REFS = ["sentiment:1", "sentiment:2", "topic:1", "topic:2", "sentiment", "topic"]
TEXT_REFS = ["answer:1", "answer:2", "answer"]
TOKENS = 6
CALLERS = 6
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Written:
    """A text, and what the model thought of each of its tokens."""

    text: str
    logprobs: Sequence[float]


class Alone:
    """Every version's own answers, by an engine of its own that is asked one thing at a time."""

    def __init__(self, store: PromptStore, model: FrozenModel) -> None:
        versions = [version for task in store.state.tasks.values() for version in task.versions]
        self._prompts: Mapping[str, LoadedPrompt] = {
            str(version): load_prompt(store.pull(str(version), for_model=model.fingerprint), model)
            for version in versions
        }
        prompts = {name: each.prompt for name, each in self._prompts.items()}
        self._rig = EngineRig(model, RecomputedDecoding(model), prompts)

    def probabilities(self, version: str, text: str) -> dict[str, float]:
        prompt, ids = self._ids(version, text)
        logits = self._rig.answer(self._rig.score(version, ids, prompt.label_token_ids)).logits
        assert logits is not None
        return dict(zip(prompt.task.label_names, softmax(logits), strict=True))

    def written(self, version: str, text: str, seed: int) -> Written:
        _, ids = self._ids(version, text)
        # Drawn, because greedy texts of a random model repeat one token whatever the prompt is.
        sampling = Sampling(TOKENS, temperature=1.0, seed=seed, top_logprobs=1)
        answer = self._rig.answer(self._rig.generate(version, ids, sampling))
        return Written(answer.text, [token.logprob for token in answer.tokens if token.logprob is not None])

    def _ids(self, version: str, text: str) -> tuple[LoadedPrompt, Sequence[int]]:
        prompt = self._prompts[version]
        return prompt, prompt.encoder.encode(prompt.row(text))


@pytest.fixture(scope="module")
def t5() -> FrozenModel:
    return tiny_t5(seed=2)


@pytest.fixture(scope="module")
def store(t5: FrozenModel) -> PromptStore:
    store = new_store()
    for seed, task in enumerate((SENTIMENT, TOPIC, ANSWER, SENTIMENT, TOPIC, ANSWER)):
        publish_random(store, t5, task, seed=3 * seed)
    return store


@pytest.fixture(scope="module")
def live(store: PromptStore, t5: FrozenModel) -> Iterator[LiveServer]:
    with live_server(store, t5, ServerOptions(poll_s=3600)) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with loopback_client(60) as client:
        client.base_url = httpx.URL(live.url)
        yield client


@pytest.fixture(scope="module")
def alone(store: PromptStore, t5: FrozenModel) -> Alone:
    return Alone(store, t5)


# What an answer says of itself, once it is found right.
Check = Callable[[Alone], Iterable[str]]


def ask_labels(client: httpx.Client, rng: random.Random) -> Check:
    texts = rng.sample(TEXTS, rng.randint(1, 3))
    answer = client.post("/v1/classify", json={"model": rng.sample(LABEL_REFS, 3), "input": texts}).raise_for_status()

    def check(alone: Alone) -> Iterable[str]:
        for result in answer.json()["results"]:
            version = f"{result['task']}:{result['version']}"
            expected = alone.probabilities(version, texts[result["index"]])
            assert result["probabilities"] == pytest.approx(expected, abs=1e-4)
            yield version

    return check


def ask_text(client: httpx.Client, rng: random.Random) -> Check:
    text, seed, streams = rng.choice(TEXTS), rng.randrange(1000), rng.random() < 0.5
    asked = {"model": rng.choice(TEXT_REFS), "prompt": text, "max_tokens": TOKENS, "stream": streams}
    answer = client.post("/v1/completions", json={**asked, "temperature": 1.0, "seed": seed, "logprobs": 1})

    def check(alone: Alone) -> Iterable[str]:
        version = answer.raise_for_status().headers["x-promptstore-version"]
        got, expected = _streamed(answer) if streams else _whole(answer), alone.written(version, text, seed)
        assert got.text == expected.text
        assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        yield f"{version} streamed" if streams else version

    return check


def _whole(answer: httpx.Response) -> Written:
    (choice,) = answer.json()["choices"]
    return Written(choice["text"], choice["logprobs"]["token_logprobs"])


def _streamed(answer: httpx.Response) -> Written:
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    told = [each["logprobs"]["token_logprobs"] for each in choices if each["logprobs"]]
    return Written("".join(each["text"] for each in choices), [value for values in told for value in values])


def test_labels_texts_and_streams_of_mixed_prompts_are_those_of_the_engine_alone(
    client: httpx.Client, alone: Alone
) -> None:
    def call(seed: int) -> list[Check]:
        rng = random.Random(seed)
        return [ask(client, rng) for _ in range(ROUNDS) for ask in (ask_labels, ask_text)]

    with ThreadPoolExecutor(CALLERS) as pool:
        checks = [check for found in pool.map(call, range(CALLERS)) for check in found]
    seen = Counter(each for check in checks for each in check(alone))
    print(dict(seen))
    versions = {f"{task}:{number}" for task in ("sentiment", "topic", "answer") for number in (1, 2)}
    assert seen.keys() == versions | {"answer:1 streamed", "answer:2 streamed"}
    assert _batch_rows(client) > 1.5, "nothing was answered together"


def test_versions_and_inputs_move_the_answers(alone: Alone) -> None:
    """Otherwise the test above would say little."""
    for refs, text_pairs in ((("sentiment:1", "sentiment:2"), (TEXTS[0], TEXTS[0])), (("topic:2",) * 2, TEXTS[:2])):
        first, second = (alone.probabilities(ref, text) for ref, text in zip(refs, text_pairs, strict=True))
        assert max(abs(first[name] - second[name]) for name in first) > 0.01
    written = {alone.written(ref, TEXTS[0], seed).text for ref in ("answer:1", "answer:2") for seed in range(5)}
    assert len(written) > 5


def _batch_rows(client: httpx.Client) -> float:
    """How many rows shared a batch, on average."""
    lines = client.get("/metrics").text.splitlines()
    rows, inputs = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"promptstore_batch_rows_{kind}"))
        for kind in ("sum", "count")
    )
    return rows / inputs
