"""Serving against vLLM on the CPU: the same mixed traffic over fifty prompts, prefix caching on.

In bfloat16 where the processor computes it, else in float32. Server against server, each a process of its own, over
HTTP, from one client. vLLM gets `[prompt][input]` as embeddings that were made before the clock runs; our server gets
the text. Both use every core and take turns. Both are warm: what they keep of a prompt is kept, from another text
under it; no text is asked twice, so that no cache holds an answer's whole input.

vLLM runs as it does by default, and once more with the smallest blocks that its CPU kernels take: its cache keeps whole
blocks, of which a prompt of 100 virtual tokens fills three of 32 positions and none of the default 128.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_process import server_process
from infra.bench.serving_traffic import PROMPTS, TASK, Traffic, bench_model, validation_texts
from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.placement import choose_dtype
from promptstore.lm.source import find_model
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.sampling import Sampling
from promptstore.runtime.vllm.wire import embeddings_text, generate_body, label_logprobs, score_body
from promptstore.serving.service import softmax
from promptstore.settings import load_settings
from promptstore.testing.demo_model import DEMO_MODEL
from promptstore.testing.served import new_store
from promptstore.testing.servers.process import MissingServerError
from promptstore.testing.servers.vllm import SMALLEST_BLOCK, vllm_server

COMMAND = "make bench-vllm"
TURNS = 3
# Requests: one under each prompt to warm both servers, and those that are measured, so many that a turn's beginning and
# end, when fewer than all clients wait, count for little.
WARMING = slice(0, PROMPTS)
SCORED = slice(PROMPTS, PROMPTS + 576)
GENERATED = slice(SCORED.stop, SCORED.stop + 192)
NEW_TOKENS = 16
AT_ONCE = 32
# Before each turn, of either server: vLLM's OpenMP helpers go on spinning for about a second after its last operation
# (0.4 of a core over our next two seconds), which is no work that anybody asked for.
REST_S = 3.0
LABELS, TEXT = "label scoring", f"{NEW_TOKENS}-token generation"
DEFAULT, SMALLEST = "vLLM as by default", f"vLLM with blocks of {SMALLEST_BLOCK}"
BLOCKS = {DEFAULT: None, SMALLEST: SMALLEST_BLOCK}
# No block of either size fits into a prompt of 20.
LENGTHS = {DEFAULT: (100, 20), SMALLEST: (100,)}
TARGETS = {
    (DEFAULT, 100, LABELS): ">= 3",
    (DEFAULT, 20, LABELS): ">= 1.5",
    (DEFAULT, 100, TEXT): ">= 1",
    (DEFAULT, 20, TEXT): ">= 1",
}
WRITE = TaskSpec(name="write", kind="generation", template=TASK.template, data=TASK.data, max_target_tokens=NEW_TOKENS)
Body = Mapping[str, Any]


def measurements() -> list[Measurement]:
    """Ratios of requests per second. A quarter of an hour on two quiet cores; nothing where vLLM is not installed."""
    try:
        return [row for peer in LENGTHS for row in _against(peer)]
    except MissingServerError as error:
        Console().print(f"serving_vllm is skipped: {error}")
        return []


def _against(peer: str) -> list[Measurement]:
    cores = len(os.sched_getaffinity(0))
    dtype = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    folder = find_model(DEMO_MODEL, cache_dir=load_settings().cache_dir).folder
    with vllm_server(folder, dtype=dtype, threads=cores, is_compiled=True, block=BLOCKS[peer]) as url:
        model = bench_model(dtype)
        return [row for length in LENGTHS[peer] for row in _compare(model, url, peer, length, cores)]


@dataclass(frozen=True, slots=True)
class _Arm:
    """Requests to one server. bodies: of the whole traffic; measured: which of them count.

    done: what an answer counts, from its JSON: 1 a label, its tokens for a text.
    """

    url: str
    bodies: Sequence[Body]
    measured: slice
    done: Callable[[Any], int]

    def warm(self) -> list[Any]:
        return asyncio.run(_ask(self.url, self.bodies[WARMING]))

    def rate(self, turn: int) -> tuple[int, float]:
        """How much was answered in how many seconds."""
        started = time.perf_counter()
        answers = asyncio.run(_ask(self.url, self.bodies[self.measured][turn::TURNS]))
        return sum(map(self.done, answers)), time.perf_counter() - started


def _compare(model: FrozenModel, url: str, peer: str, num_virtual_tokens: int, cores: int) -> list[Measurement]:
    dtype = str(model.dtype).removeprefix("torch.")
    traffic = Traffic(model, num_virtual_tokens, texts=validation_texts(GENERATED.stop))
    traffic.requests[WARMING] = [(number, ids) for number, (_, ids) in enumerate(traffic.requests[WARMING])]
    (served,) = httpx.get(f"{url}/v1/models").json()["data"]
    name = f"serving, {dtype}, {num_virtual_tokens} virtual tokens, {PROMPTS} prompts mixed"
    rows: list[Measurement] = []
    with _our_server(traffic, dtype, cores) as our_url:
        embedded = [{"model": served["id"], **each} for each in _embedded(model, traffic)]
        for kind, (theirs, ours) in (
            (LABELS, _label_arms(url, our_url, traffic, embedded)),
            (TEXT, _text_arms(url, our_url, traffic, embedded)),
        ):
            their_rate, our_rate = _rates(theirs, ours)
            unit = "labels/s" if kind == LABELS else "tokens/s"
            target = TARGETS.get((peer, num_virtual_tokens, kind), "")
            ratio = our_rate / their_rate
            rows += [
                measured(f"{name}, {kind}: {peer}", their_rate, unit, command=COMMAND),
                measured(f"{name}, {kind}: ours", our_rate, unit, command=COMMAND),
                measured(f"{name}, {kind}: ours / {peer}", ratio, "x", target=target, command=COMMAND),
            ]
    return rows


@contextmanager
def _our_server(traffic: Traffic, dtype: str, cores: int) -> Iterator[str]:
    """`promptstore serve` with every prompt of the traffic as a version of two tasks; gives its URL.

    Compiled, as vLLM is.
    """
    files = find_model(DEMO_MODEL, cache_dir=load_settings().cache_dir)
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        store = new_store(LocalObjectStore(Path(name)))
        for task in (TASK, WRITE):
            for prompt in traffic.prompts:
                store.publish(prompt, task, reason="benchmark")
        with server_process(Path(name), files.folder, "--compile", threads=cores, dtype=dtype) as url:
            yield url


def _embedded(model: FrozenModel, traffic: Traffic) -> list[dict[str, str]]:
    """Each request as vLLM takes it. The salt is the prompt's, as the gateway's is."""
    prompts = [torch.tensor(prompt.embeddings).to(model.dtype) for prompt in traffic.prompts]
    return [
        {
            "prompt_embeds": embeddings_text(torch.cat([prompts[number], model.embed(torch.tensor([ids]))[0]])),
            "cache_salt": f"prompt-{number}",
        }
        for number, ids in traffic.requests
    ]


def _label_arms(url: str, our_url: str, traffic: Traffic, embedded: Sequence[Body]) -> tuple[_Arm, _Arm]:
    asked = score_body(traffic.labels)
    theirs = _Arm(f"{url}/v1/completions", [{**each, **asked} for each in embedded], SCORED, lambda _: 1)
    bodies = [{"model": ref, "input": text} for ref, text in _refs(traffic, TASK)]
    ours = _Arm(f"{our_url}/v1/classify", bodies, SCORED, lambda _: 1)
    _check_same_answers(theirs, ours, traffic)
    return theirs, ours


def _text_arms(url: str, our_url: str, traffic: Traffic, embedded: Sequence[Body]) -> tuple[_Arm, _Arm]:
    asked = {**generate_body(Sampling(NEW_TOKENS), frozenset()), "stream": False}
    theirs = _Arm(
        f"{url}/v1/completions",
        [{**each, **asked} for each in embedded],
        GENERATED,
        lambda answer: len(answer["choices"][0]["token_ids"]),
    )
    ours = _Arm(
        f"{our_url}/v1/completions",
        [{"model": ref, "prompt": text} for ref, text in _refs(traffic, WRITE)],
        GENERATED,
        lambda answer: int(answer["usage"]["completion_tokens"]),
    )
    return theirs, ours


def _refs(traffic: Traffic, task: TaskSpec) -> list[tuple[str, str]]:
    pairs = zip(traffic.requests, traffic.texts, strict=True)
    return [(f"{task.name}:{number + 1}", text) for (number, _), text in pairs]


def _rates(*arms: _Arm) -> list[float]:
    """Answered per second by each arm once it is warm. They take turns, each on cores that the other has left."""
    counts, seconds = [0] * len(arms), [0.0] * len(arms)
    for arm in arms:
        arm.warm()
    for turn in range(TURNS):
        for at, arm in enumerate(arms):
            time.sleep(REST_S)
            count, spent = arm.rate(turn)
            counts[at] += count
            seconds[at] += spent
    return [count / spent for count, spent in zip(counts, seconds, strict=True)]


def _check_same_answers(theirs: _Arm, ours: _Arm, traffic: Traffic) -> None:
    """Both must do the same work: the same probabilities, but for rounding in two implementations."""
    for (number, _), their_answer, our_answer in zip(
        traffic.requests[WARMING], theirs.warm(), ours.warm(), strict=True
    ):
        said = softmax(label_logprobs(their_answer, traffic.labels))
        here = list(our_answer["results"][0]["probabilities"].values())
        if any(abs(a - b) > 0.1 for a, b in zip(said, here, strict=True)):
            raise RuntimeError(f"prompt {number}: vLLM says {said}, ours says {here}; the measurement is void")


async def _ask(url: str, bodies: Sequence[Body]) -> list[Any]:
    """Every answer, in order; `AT_ONCE` requests are out at any time."""
    room = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=600) as http:

        async def one(body: Body) -> Any:
            async with room:
                answer = await http.post(url, json=dict(body))
            if not answer.is_success:
                raise RuntimeError(f"{url} answers {answer.status_code}: {answer.text[:300]}; the measurement is void")
            return answer.json()

        return list(await asyncio.gather(*(one(body) for body in bodies)))
