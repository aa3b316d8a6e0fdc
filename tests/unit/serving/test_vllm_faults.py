"""What a gateway says when the vLLM behind it is away, slow, broken or another one. The contract has the rest."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest

from promptstore.errors import IncompatibleModelError, InvalidInputError, NotServingError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.job import Event, Scored, ScoreJob
from promptstore.runtime.vllm.answerer import VllmLimits
from promptstore.serving.engines import vllm_engine
from promptstore.serving.loaded import load_prompt
from promptstore.serving.options import ServerOptions
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.served import LiveServer, live_gateway
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.vllm.contract import input_layer_of, prompts_for
from promptstore.testing.vllm.fake import Faults, VllmFake

ASK = {"model": "sentiment", "input": "a great film"}
WRITE = {"model": "answer", "prompt": "who ?", "max_tokens": 6}


@pytest.fixture(scope="module")
def store(model: FrozenModel) -> PromptStore:
    return prompts_for(model)


@pytest.fixture(scope="module")
def fake(model: FrozenModel) -> Iterator[VllmFake]:
    fake = VllmFake(model, root=model.fingerprint.name)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def gateway(fake: VllmFake, store: PromptStore, model: FrozenModel) -> Iterator[LiveServer]:
    with live_gateway(store, input_layer_of(model), _options(fake)) as live:
        yield live


@pytest.fixture(autouse=True)
def _no_faults_left(fake: VllmFake) -> Iterator[None]:
    yield
    fake.faults = Faults()


def _options(fake: VllmFake, **limits: float) -> ServerOptions:
    vllm = VllmLimits(watch_s=0.02, **limits)  # type: ignore[arg-type]
    return ServerOptions(poll_s=60, engine="vllm", vllm_url=fake.url, vllm_timeout_s=0.5, vllm=vllm)


def _wait_for_status(live: LiveServer, status: int) -> httpx.Response:
    deadline = time.monotonic() + 20
    while (answer := httpx.get(f"{live.url}/readyz")).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.01)
    return answer


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _classify(live: LiveServer) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/classify", json=ASK, timeout=30)


def test_while_vllm_is_away_requests_get_503_and_readiness_says_why(gateway: LiveServer, fake: VllmFake) -> None:
    fake.stop()
    unready = _wait_for_status(gateway, 503)
    refused = _classify(gateway)
    health = httpx.get(f"{gateway.url}/healthz")
    metrics = httpx.get(f"{gateway.url}/metrics").text
    fake.start()
    _wait_for_status(gateway, 200)

    assert "cannot be reached" in unready.json()["status"]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "not_serving"
    assert refused.json()["error"]["type"] == "server_error"
    assert "promptstore_engine_is_available 0.0" in metrics
    assert health.status_code == 200, "restarting the gateway would not help"
    assert _classify(gateway).status_code == 200


def test_each_task_is_told_how_long_it_waited_and_where_its_prompt_was(gateway: LiveServer) -> None:
    _wait_for_status(gateway, 200)
    assert _classify(gateway).status_code == 200
    assert httpx.post(f"{gateway.url}/v1/completions", json=WRITE, timeout=30).status_code == 200
    metrics = httpx.get(f"{gateway.url}/metrics").text
    for task in ("sentiment", "answer"):
        assert f'promptstore_queue_seconds_count{{task="{task}"}}' in metrics
        assert f'promptstore_prompts_found_total{{place="device",task="{task}"}}' in metrics


def test_the_openai_client_sees_its_own_error_when_vllm_is_away(gateway: LiveServer, fake: VllmFake) -> None:
    fake.faults = Faults(status=500)
    _wait_for_status(gateway, 503)
    api = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.InternalServerError, match="injected"):
        api.completions.create(model="answer", prompt="who ?")
    fake.faults = Faults()
    _wait_for_status(gateway, 200)


def test_a_gateway_starts_before_its_vllm_and_serves_once_that_is_there(store: PromptStore, model: FrozenModel) -> None:
    late = VllmFake(model, root=model.fingerprint.name)
    with live_gateway(store, input_layer_of(model), _options(late)) as live:
        assert httpx.get(f"{live.url}/readyz").status_code == 503
        late.start()
        _wait_for_status(live, 200)
        assert _classify(live).status_code == 200
        late.stop()


def test_a_vllm_that_falls_silent_is_given_up_in_time(gateway: LiveServer, fake: VllmFake) -> None:
    fake.faults = Faults(silence_s=1.0)
    answer = _classify(gateway)
    assert answer.status_code == 503
    assert "did not answer in time" in answer.json()["error"]["message"]


@pytest.mark.parametrize("faults", [Faults(cut_after=3), Faults(fail_after=3)])
def test_a_stream_that_vllm_cuts_ends_in_an_error_and_never_looks_whole(
    gateway: LiveServer, fake: VllmFake, faults: Faults
) -> None:
    _wait_for_status(gateway, 200)
    fake.faults = faults
    with httpx.stream("POST", f"{gateway.url}/v1/completions", json={**WRITE, "stream": True}) as answer:
        text = answer.read().decode()
    assert text.count('"finish_reason":null') == 3
    assert '"error"' in text.splitlines()[-2]
    assert "[DONE]" not in text
    whole = httpx.post(f"{gateway.url}/v1/completions", json=WRITE)
    assert whole.status_code == 503


def test_a_vllm_that_comes_back_with_another_model_is_not_asked(store: PromptStore, model: FrozenModel) -> None:
    fake = VllmFake(model, root=model.fingerprint.name)
    fake.start()
    with live_gateway(store, input_layer_of(model), _options(fake)) as live:
        fake.stop()
        _wait_for_status(live, 503)
        fake.model = tiny_llama(seed=1)
        fake.start()
        deadline = time.monotonic() + 20
        while "another embedding table" not in httpx.get(f"{live.url}/readyz").json()["status"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert _classify(live).status_code == 503
    fake.stop()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"root": "somebody/else"}, "serves served \\(somebody/else\\)"),
        ({"model": tiny_llama(seed=1)}, "another embedding table"),
        ({"takes_embeddings": False}, "--enable-prompt-embeds"),
    ],
)
def test_a_gateway_refuses_to_start_in_front_of_another_model(
    store: PromptStore, model: FrozenModel, given: dict[str, object], says: str
) -> None:
    fake = VllmFake(**{"model": model, "root": model.fingerprint.name, **given})  # type: ignore[arg-type]
    fake.start()
    with pytest.raises(IncompatibleModelError, match=says), live_gateway(store, input_layer_of(model), _options(fake)):
        pass
    fake.stop()


def test_a_model_under_another_name_is_taken_on_the_operators_word(store: PromptStore, model: FrozenModel) -> None:
    fake = VllmFake(model, root="/models/of/another/machine")
    fake.start()
    options = replace(_options(fake), vllm_model="served")
    with live_gateway(store, input_layer_of(model), options) as live:
        assert _classify(live).status_code == 200
    fake.stop()


def test_a_key_is_shown_to_vllm_and_a_wrong_one_is_named_as_the_reason(store: PromptStore, model: FrozenModel) -> None:
    fake = VllmFake(model, root=model.fingerprint.name, api_key="right")
    fake.start()
    for key, problem in (("right", None), ("wrong", "refuses the gateway's key")):
        answerer = vllm_engine(input_layer_of(model), _options(fake), api_key=key).answerer
        answerer.start()
        assert (answerer.problem is None) if problem is None else (problem in (answerer.problem or ""))
        answerer.close()
    fake.stop()


def test_an_input_beyond_vllms_positions_is_refused_and_not_cut(store: PromptStore, model: FrozenModel) -> None:
    fake = VllmFake(model, root=model.fingerprint.name, max_length=48)
    fake.start()
    with live_gateway(store, input_layer_of(model), _options(fake)) as live:
        body = {"model": "answer", "prompt": "why " * 12, "max_tokens": 12}
        answer = httpx.post(f"{live.url}/v1/completions", json=body)
        assert answer.status_code == 400
        assert "--max-model-len 48" in answer.json()["error"]["message"]
    fake.stop()


def test_more_labels_than_vllm_takes_at_once_are_asked_for_in_parts(
    fake: VllmFake, store: PromptStore, model: FrozenModel
) -> None:
    engine = vllm_engine(input_layer_of(model), _options(fake))
    prompt = load_prompt(store.pull("sentiment:1", for_model=model.fingerprint), model)
    engine.bank.hold(prompt.digest, lambda: prompt)
    engine.answerer.start()
    answered, events = threading.Event(), list[Event]()
    labels = range(3, 303)

    def deliver(event: Event) -> None:
        events.append(event)
        answered.set()

    before = len(fake.bodies)
    engine.answerer.submit([ScoreJob(prompt.digest, prompt.encoder.encode({"text": "x"}), labels, deliver)])
    assert answered.wait(20)
    engine.answerer.close()
    (scored,) = events
    assert isinstance(scored, Scored)
    assert len(scored.logits) == len(labels)
    asked = [len(body["logprob_token_ids"]) for body in fake.bodies[before:] if body.get("cache_salt")]
    assert asked == [128, 128, 44]


def test_every_version_has_a_salt_of_its_own(gateway: LiveServer, fake: VllmFake) -> None:
    before = len(fake.bodies)
    for number in (1, 2, 1):
        httpx.post(f"{gateway.url}/v1/classify", json={**ASK, "model": f"sentiment:{number}"})
    first, second, again = (body["cache_salt"] for body in fake.bodies[before:])
    assert first == again != second


def test_what_waits_is_bounded_and_the_rest_is_told_at_once(
    fake: VllmFake, store: PromptStore, model: FrozenModel
) -> None:
    options = replace(_options(fake, queued=4, sent=1), vllm_timeout_s=30.0)
    with live_gateway(store, input_layer_of(model), options) as live:
        fake.faults = Faults(silence_s=0.3)
        with ThreadPoolExecutor(10) as pool:
            statuses = sorted(answer.status_code for answer in pool.map(lambda _: _classify(live), range(10)))
        fake.faults = Faults()
        assert set(statuses) == {200, 429}
        assert _classify(live).status_code == 200


def test_what_waits_too_long_is_told_so_while_vllm_is_still_busy_with_another(
    fake: VllmFake, store: PromptStore, model: FrozenModel
) -> None:
    options = replace(_options(fake, sent=1, queue_timeout_s=0.2), vllm_timeout_s=60.0)
    with live_gateway(store, input_layer_of(model), options) as live, ThreadPoolExecutor(1) as pool:
        fake.faults = Faults(silence_s=2.0)
        first = pool.submit(_classify, live)
        _wait_until(lambda: live.context.scheduler.running == 1)
        late = _classify(live)
        assert (late.status_code, first.done()) == (429, False)
        assert "waited too long" in late.json()["error"]["message"]
        assert first.result().status_code == 200


def test_what_nobody_waits_for_keeps_no_place_here_and_none_at_vllm(
    fake: VllmFake, store: PromptStore, model: FrozenModel
) -> None:
    options = replace(_options(fake, sent=1, queued=1), vllm_timeout_s=60.0)
    with live_gateway(store, input_layer_of(model), options) as live:
        fake.faults = Faults(silence_s=8.0)
        for _ in range(3):  # more than there are places
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{live.url}/v1/classify", json=ASK, timeout=httpx.Timeout(60, read=0.2))
        _wait_until(lambda: live.context.scheduler.queued == live.context.scheduler.running == 0)
        fake.faults = Faults()
        assert _classify(live).status_code == 200


def test_an_engine_without_its_address_is_refused() -> None:
    for given in ({"engine": "vllm"}, {"vllm_url": "http://127.0.0.1:1"}, {"engine": "vllm", "vllm_url": "ftp://x"}):
        with pytest.raises(InvalidInputError, match="--vllm-url"):
            ServerOptions(**given).check(has_keys=False)  # type: ignore[arg-type]


def test_what_waits_when_the_gateway_stops_is_told_so(fake: VllmFake, store: PromptStore, model: FrozenModel) -> None:
    engine = vllm_engine(input_layer_of(model), _options(fake))
    prompt = load_prompt(store.pull("sentiment:1", for_model=model.fingerprint), model)
    engine.bank.hold(prompt.digest, lambda: prompt)
    engine.answerer.start()
    fake.faults = Faults(silence_s=0.4)
    events = list[Event]()
    engine.answerer.submit([ScoreJob(prompt.digest, [5, 6, 7], [8, 9], events.append)])
    engine.answerer.close()
    assert isinstance(getattr(events[0], "error", None), NotServingError)
    assert not engine.answerer.is_alive
