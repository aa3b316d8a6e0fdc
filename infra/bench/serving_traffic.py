"""What the benchmarks of serving send: real texts under random prompts, on the demo's model."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.core.prompt import SoftPrompt
from promptstore.lm.answering import for_answers
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.runtime.bank import Budgets
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.queue import BatchLimits
from promptstore.runtime.row import Decoding, PreparedPrompt, Row, RunningRows
from promptstore.serving.loaded import common_start
from promptstore.settings import load_settings
from promptstore.testing.engine_rig import EngineRig, digest_of

COMMAND = "python -m infra.bench speed --only serving"
SOURCE = "asset:smollm2-135m"
TASK = TASKS["sst2"]
PROMPTS = 50
REQUESTS = 192
# Of the load tests: small, so that many batches pass in a short time.
LIMITS = BatchLimits(rows=8)
BUDGETS = Budgets(device_bytes=16 << 30, host_bytes=1 << 30)
Request = tuple[int, list[int]]


def bench_model(dtype: str) -> FrozenModel:
    """The demo's model on one thread, so that CPU seconds count work and not waiting."""
    torch.set_num_threads(1)
    return open_model(SOURCE, cache_dir=load_settings().cache_dir, device="cpu", dtype=dtype)


def served_model(dtype: str) -> FrozenModel:
    """The same as a server opens it."""
    return for_answers(bench_model(dtype), folder=load_settings().cache_dir / "compiled")


def validation_texts(count: int = REQUESTS) -> list[str]:
    return [row["text"] for row in load_split("sst2", "validation")][:count]


def shortest_texts(count: int) -> list[str]:
    """Those of the training rows with the fewest characters, in the order of the file."""
    texts = [row["text"] for row in load_split("sst2", "train")]
    chosen = sorted(range(len(texts)), key=lambda at: len(texts[at]))[:count]
    return [texts[at] for at in sorted(chosen)]


def random_prompts(model: FrozenModel, count: int, num_virtual_tokens: int) -> list[SoftPrompt]:
    """Distinct prompts near the scale of the model's own embeddings."""
    scale = float(model.embeddings.float().std())
    shape = (num_virtual_tokens, model.hidden_size)
    drawn = (np.random.default_rng(seed).normal(0.0, scale, shape) for seed in range(count))
    return [SoftPrompt(each.astype(np.float32), model.fingerprint) for each in drawn]


class Traffic:
    """Texts, each under one of many prompts, drawn evenly: the mix that shares least."""

    def __init__(
        self,
        model: FrozenModel,
        num_virtual_tokens: int,
        *,
        prompts: int = PROMPTS,
        texts: Sequence[str] | None = None,
    ) -> None:
        encoder = TaskEncoder(TASK, model, reserved=num_virtual_tokens + 1)
        rng = random.Random(0)  # noqa: S311 - repeatable traffic
        self.texts = validation_texts() if texts is None else texts
        self.labels = encoder.label_token_ids
        self.prefix = common_start(encoder, TASK.template_fields)
        self.prompts = random_prompts(model, prompts, num_virtual_tokens)
        self.requests: list[Request] = [(rng.randrange(prompts), encoder.encode({"text": text})) for text in self.texts]

    def rig(self, model: FrozenModel, *, is_cheap: bool = False) -> EngineRig:
        """An engine with every prompt ready. is_cheap: made ready as `CheapPreparation` says."""
        decoding, _ = choose_decoding(model)
        named = {f"prompt-{number}": prompt for number, prompt in enumerate(self.prompts)}
        if is_cheap:
            decoding = CheapPreparation(decoding)
        rig = EngineRig(model, decoding, named, prefixes=dict.fromkeys(named, self.prefix), budgets=BUDGETS)
        for name in named:
            rig.bank.prepared(digest_of(name))
        return rig


class CheapPreparation:
    """Makes prompts ready without a forward pass each, where a thousand are needed and their answers do not matter.

    The first is made ready as it should be. Every other gets numbers near those of the first, as many of them and in
    memory of its own: reading an input under it takes the same work.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._first: PreparedPrompt | None = None

    @property
    def is_padded(self) -> bool:
        return self._decoding.is_padded

    def prepare(self, prompt: Tensor, prefix_ids: tuple[int, ...], *, is_after: bool = False) -> PreparedPrompt:
        if self._first is None:
            self._first = self._decoding.prepare(prompt, prefix_ids, is_after=is_after)
            return self._first
        shift = float(prompt.mean())
        return replace(self._first, tensors={name: tensor + shift for name, tensor in self._first.tensors.items()})

    def read(self, rows: Sequence[Row]) -> Tensor:
        return self._decoding.read(rows)

    def start(self) -> RunningRows:
        return self._decoding.start()
