"""The engine without HTTP: mixed traffic against PEFT, many prompts against one, warm and cold prompts."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, median

import torch

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_peft import PeftServer
from infra.bench.serving_traffic import (
    COMMAND,
    LIMITS,
    PROMPTS,
    TASK,
    Request,
    Traffic,
    bench_model,
    random_prompts,
    served_model,
    shortest_texts,
)
from promptstore.core.ref import PromptRef
from promptstore.lm.frozen import FrozenModel
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.job import ScoreJob
from promptstore.runtime.queue import BatchLimits, JobQueue
from promptstore.runtime.row import PreparedPrompt
from promptstore.serving.loaded import load_prompt
from promptstore.store.cache import PromptCache
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import Answer, EngineRig, RigSource, digest_of
from promptstore.testing.served import new_store

TURNS = 4
# PEFT answers this share of the prompts' requests: it takes its time.
PEFT_PROMPTS = 12
MANY = 1000
BATCHES_A_TURN = 5
Queued = tuple[JobQueue[ScoreJob], Sequence[Answer]]


def mixed_traffic(dtype: str, num_virtual_tokens: int, targets: tuple[str, str]) -> list[Measurement]:
    """Requests per CPU second: PEFT one by one, PEFT in batches of one prompt, the engine in its own mixed batches."""
    model, peer = served_model(dtype), bench_model(dtype)
    traffic = Traffic(model, num_virtual_tokens)
    rig = traffic.rig(model)
    peft = PeftServer(peer, traffic.prompts, traffic.labels)
    _check_same_answers(rig, peft, traffic, tolerance=1e-2 if dtype == "float32" else 1.0)
    groups = typical_groups(traffic.requests, PEFT_PROMPTS)
    seconds = _by_turns(
        lambda turn: _one_by_one(peft, groups[turn::TURNS]),
        lambda turn: _per_prompt(peft, groups[turn::TURNS]),
        lambda turn: score_all(rig, traffic.requests[turn::TURNS], traffic.labels, BatchLimits()),
    )
    one, per_prompt, ours = (1 / each for each in seconds)
    name = f"serving, {dtype}, {num_virtual_tokens} virtual tokens, {PROMPTS} prompts mixed"
    return [
        measured(f"{name}: engine", ours, "requests/CPU s", command=COMMAND),
        measured(f"{name}: PEFT, set_adapter per request", one, "requests/CPU s", command=COMMAND),
        measured(f"{name}: PEFT, batches of one prompt", per_prompt, "requests/CPU s", command=COMMAND),
        measured(f"{name}: engine / PEFT per request", ours / one, "x", target=targets[0], command=COMMAND),
        measured(f"{name}: engine / PEFT per prompt", ours / per_prompt, "x", target=targets[1], command=COMMAND),
    ]


def many_prompts(model: FrozenModel, prompts: int = MANY) -> list[Measurement]:
    """As many requests as prompts wait at once, each under a prompt of its own; beside them the same under one prompt.

    The texts are the shortest there are: the least work to hide the choosing of prompts behind.
    """
    traffic = Traffic(model, 20, prompts=prompts, texts=shortest_texts(prompts))
    rig = traffic.rig(model, is_cheap=True)
    inputs = [ids for _, ids in traffic.requests]
    many, one = (
        queue_all(rig, list(zip(numbers, inputs, strict=True)), traffic.labels)
        for numbers in (range(prompts), [0] * prompts)
    )
    many_s, one_s = drain_by_turns(rig, many, one)
    chosen_s = _cpu_s(lambda: [_choose(rig, f"prompt-{number}") for number in range(prompts)])
    return [
        measured(
            f"serving, {prompts:,} prompts in flight: throughput against one prompt",
            one_s / many_s,
            "x",
            target=">= 0.95",
            command=COMMAND,
        ),
        measured(
            "serving, choosing a warm prompt: share of an input's forward pass",
            chosen_s / one_s,
            "",
            target="< 0.01",
            command=COMMAND,
        ),
    ]


def cold_prompt(model: FrozenModel, num_virtual_tokens: int = 100) -> list[Measurement]:
    """A prompt whose [P, H] is on local disk: what it takes before the forward pass over its P tokens can begin."""
    with tempfile.TemporaryDirectory() as folder:
        objects = LocalObjectStore(Path(folder) / "store")
        store = PromptStore(new_store(objects).ledger, objects, cache=PromptCache(Path(folder) / "cache", 1 << 30))
        spent_ms = []
        for prompt in random_prompts(model, 9, num_virtual_tokens):
            version = store.publish(prompt, TASK)
            store.pull(str(version), for_model=model.fingerprint)
            started = time.perf_counter()
            loaded = load_prompt(store.pull(str(version), for_model=model.fingerprint), model)
            torch.tensor(loaded.prompt.embeddings)
            spent_ms.append(1000 * (time.perf_counter() - started))
    name = "serving, cold prompt from the disk cache: before its forward pass, median"
    return [measured(name, median(spent_ms), "ms", target="< 50", command=COMMAND)]


def score_all(rig: EngineRig, requests: Sequence[Request], labels: Sequence[int], limits: BatchLimits = LIMITS) -> int:
    """Answers `requests`, all of which wait from the start; returns how many they are."""
    queue, answers = queue_all(rig, requests, labels)
    while len(queue):
        rig.engine.score(queue.take_batch(limits))
    _require_answers(answers)
    return len(requests)


def queue_all(rig: EngineRig, requests: Sequence[Request], labels: Sequence[int]) -> Queued:
    """A queue that every request waits in, and what will be their answers."""
    queue: JobQueue[ScoreJob] = JobQueue()
    asked = [rig.score(f"prompt-{number}", ids, labels) for number, ids in requests]
    for job, _ in asked:
        queue.add(job, now=0.0)
    return queue, [answer for _, answer in asked]


def drain_by_turns(rig: EngineRig, *queued: Queued) -> list[float]:
    """CPU seconds until each queue is empty; some batches of one, then some of the next, so that all meet the same."""
    seconds = [0.0] * len(queued)
    while any(len(queue) for queue, _ in queued):
        for at, (queue, _) in enumerate(queued):
            started = time.process_time()
            for _ in range(BATCHES_A_TURN):
                if batch := queue.take_batch(LIMITS):
                    rig.engine.score(batch)
            seconds[at] += time.process_time() - started
    for _, answers in queued:
        _require_answers(answers)
    return seconds


def typical_groups(requests: Sequence[Request], prompts: int) -> list[list[Request]]:
    """All requests of some prompts, by prompt: of many samples the one whose inputs are most nearly of average length.

    Otherwise the arms of a comparison would not have the same work to do.
    """
    by_prompt = {number: [each for each in requests if each[0] == number] for number, _ in requests}
    rng = random.Random(0)  # noqa: S311 - repeatable
    samples = [rng.sample(sorted(by_prompt), prompts) for _ in range(1000)]
    average = _mean_length(requests)

    def distance(sample: Sequence[int]) -> float:
        return abs(_mean_length([request for number in sample for request in by_prompt[number]]) - average)

    return [by_prompt[number] for number in min(samples, key=distance)]


def _mean_length(requests: Sequence[Request]) -> float:
    return fmean(len(ids) for _, ids in requests)


def _require_answers(answers: Sequence[Answer]) -> None:
    if any(answer.logits is None for answer in answers):
        raise RuntimeError("a request failed; the measurement is void")


def _one_by_one(peft: PeftServer, groups: Sequence[Sequence[Request]]) -> int:
    requests = list(chain.from_iterable(groups))
    for number, ids in requests:
        peft.answer(number, [ids])
    return len(requests)


def _per_prompt(peft: PeftServer, groups: Sequence[Sequence[Request]]) -> int:
    for group in groups:
        peft.answer(group[0][0], [ids for _, ids in group])
    return sum(map(len, groups))


def _check_same_answers(rig: EngineRig, peft: PeftServer, traffic: Traffic, *, tolerance: float) -> None:
    """Both must do the same work: one input at a time, where PEFT is right, they give the same logits."""
    for number, ids in traffic.requests[:4]:
        ours = rig.answer(rig.score(f"prompt-{number}", ids, traffic.labels)).logits or ()
        theirs = peft.answer(number, [ids])[0]
        if any(abs(a - b) > tolerance for a, b in zip(ours, theirs, strict=True)):
            raise RuntimeError(f"the engine says {ours}, PEFT says {theirs}; the measurement is void")


def _by_turns(*arms: Callable[[int], int]) -> list[float]:
    """CPU seconds per request of each arm. They take turns, so that what disturbs the machine disturbs them alike."""
    seconds, requests = [0.0] * len(arms), [0] * len(arms)
    for turn in range(TURNS):
        for at, arm in enumerate(arms):
            started = time.process_time()
            requests[at] += arm(turn)
            seconds[at] += time.process_time() - started
    return [spent / count for spent, count in zip(seconds, requests, strict=True)]


def _choose(rig: EngineRig, name: str) -> PreparedPrompt:
    """What a request under a warm prompt does that one under the only prompt would not."""
    ref = PromptRef.parse(name)
    digest = digest_of(ref.task)
    rig.bank.hold(digest, _never)
    found = rig.bank.prepared(digest)
    rig.bank.release(digest)
    return found


def _never() -> RigSource:
    raise RuntimeError("a prompt is not warm; the measurement is void")


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
