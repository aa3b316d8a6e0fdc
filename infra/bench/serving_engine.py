"""The engine without HTTP: mixed traffic against PEFT, many prompts against one, warm and cold prompts."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from infra.bench.measurement import Measurement, measured
from infra.bench.serving_peft import PeftServer
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.bank import Budgets
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.job import ScoreJob
from promptstore.runtime.queue import BatchLimits, JobQueue
from promptstore.serving.loaded import common_start, load_prompt
from promptstore.settings import load_settings
from promptstore.store.cache import PromptCache
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import EngineRig, digest_of, random_prompt
from promptstore.testing.served import new_store

COMMAND = "make bench"
SOURCE = "asset:smollm2-135m"
TASK = TASKS["sst2"]
PROMPTS = 50
REQUESTS = 192
TURNS = 4
LIMITS = BatchLimits(rows=8)
BUDGETS = Budgets(device_bytes=16 << 30, host_bytes=1 << 30)
Request = tuple[int, list[int]]


def bench_model(dtype: str) -> FrozenModel:
    """The demo's model on one thread, so that CPU seconds count work and not waiting."""
    torch.set_num_threads(1)
    return open_model(SOURCE, cache_dir=load_settings().cache_dir, device="cpu", dtype=dtype)


class Traffic:
    """Real texts, each under one of many prompts, drawn evenly: the mix that shares least."""

    def __init__(self, model: FrozenModel, num_virtual_tokens: int, *, prompts: int = PROMPTS) -> None:
        encoder = TaskEncoder(TASK, model, reserved=num_virtual_tokens + 1)
        rng = random.Random(0)  # noqa: S311 - repeatable traffic
        texts = [row["text"] for row in load_split("sst2", "validation")][:REQUESTS]
        self.labels = encoder.label_token_ids
        self.prefix = common_start(encoder, TASK.template_fields)
        self.prompts = [random_prompt(model, num_virtual_tokens, seed) for seed in range(prompts)]
        self.requests: list[Request] = [(rng.randrange(prompts), encoder.encode({"text": text})) for text in texts]

    def rig(self, model: FrozenModel) -> EngineRig:
        decoding, _ = choose_decoding(model)
        named = {f"prompt-{number}": prompt for number, prompt in enumerate(self.prompts)}
        rig = EngineRig(model, decoding, named, prefixes=dict.fromkeys(named, self.prefix), budgets=BUDGETS)
        for name in named:
            rig.bank.prepared(digest_of(name))
        return rig


def mixed_traffic(dtype: str, num_virtual_tokens: int, targets: tuple[str, str]) -> list[Measurement]:
    """Requests per CPU second: PEFT one by one, PEFT in batches of one prompt, the engine in mixed batches."""
    model, peer = bench_model(dtype), bench_model(dtype)
    traffic = Traffic(model, num_virtual_tokens)
    rig = traffic.rig(model)
    peft = PeftServer(peer, traffic.prompts, traffic.labels)
    _check_same_answers(rig, peft, traffic, tolerance=1e-2 if dtype == "float32" else 1.0)
    seconds = _by_turns(
        lambda turn: _one_by_one(peft, traffic.requests[turn::16]),
        lambda turn: _per_prompt(peft, traffic.requests, prompts=range(turn, PROMPTS, 16)),
        lambda turn: score_all(rig, traffic.requests[turn::2], traffic.labels),
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


def many_prompts(model: FrozenModel, prompts: int = 1000) -> list[Measurement]:
    """The same requests, each under a prompt of its own, against all under one; and what choosing a prompt costs."""
    traffic = Traffic(model, 20, prompts=prompts)
    rig = traffic.rig(model)
    spread = [(number * (prompts // REQUESTS), ids) for number, (_, ids) in enumerate(traffic.requests)]
    same = [(0, ids) for _, ids in traffic.requests]
    many_s, one_s = _by_turns(
        lambda turn: score_all(rig, spread[turn::2], traffic.labels),
        lambda turn: score_all(rig, same[turn::2], traffic.labels),
    )
    digests = [digest_of(f"prompt-{number}") for number in range(prompts)]
    lookup_s = _cpu_s(lambda: [rig.bank.prepared(digest) for digest in digests]) / prompts
    return [
        measured(
            "serving, 1,000 prompts loaded: throughput against one prompt",
            one_s / many_s,
            "x",
            target=">= 0.95",
            command=COMMAND,
        ),
        measured(
            "serving, choosing a warm prompt: share of an input's forward pass",
            lookup_s / one_s,
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
        for seed in range(9):
            version = store.publish(random_prompt(model, num_virtual_tokens, seed), TASK)
            store.pull(str(version), for_model=model.fingerprint)
            started = time.perf_counter()
            loaded = load_prompt(store.pull(str(version), for_model=model.fingerprint), model)
            torch.tensor(loaded.prompt.embeddings)
            spent_ms.append(1000 * (time.perf_counter() - started))
    name = "serving, cold prompt from the disk cache: before its forward pass, median"
    return [measured(name, median(spent_ms), "ms", target="< 50", command=COMMAND)]


def score_all(rig: EngineRig, requests: Sequence[Request], labels: Sequence[int]) -> int:
    queue: JobQueue[ScoreJob] = JobQueue()
    asked = [rig.score(f"prompt-{number}", ids, labels) for number, ids in requests]
    for job, _ in asked:
        queue.add(job, now=0.0)
    while len(queue):
        rig.engine.score(queue.take_batch(LIMITS))
    if any(answer.error for _, answer in asked):
        raise RuntimeError("a request failed; the measurement is void")
    return len(requests)


def _one_by_one(peft: PeftServer, requests: Sequence[Request]) -> int:
    for number, ids in requests:
        peft.answer(number, [ids])
    return len(requests)


def _per_prompt(peft: PeftServer, requests: Sequence[Request], *, prompts: range) -> int:
    answered = 0
    for prompt in prompts:
        inputs = [ids for number, ids in requests if number == prompt]
        if inputs:
            peft.answer(prompt, inputs)
        answered += len(inputs)
    return answered


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


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
