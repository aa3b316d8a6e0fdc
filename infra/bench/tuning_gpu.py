"""Speed of fitting on a GPU, with random weights; needs torch, transformers, safetensors and numpy alone.

    python -m infra.bench.tuning_gpu [--out FILE] [--sizes SIZE…] [--profile]

Against PEFT in a plain loop on the same model, rows, dtype and batch, if it is installed, and against the device's own
rate of matrix products. Without a GPU the same runs on a tiny model, to show that the command works; its numbers mean
nothing.
"""

import argparse
import importlib.util
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from promptstore.core.fingerprint import BaseModelFingerprint
from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.lm.fingerprint import tokenizer_digest
from promptstore.lm.frozen import FrozenModel, freeze
from promptstore.testing.tiny_models import tiny_tokenizer
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import StepReport
from promptstore.tuning.examples import Example, encode_rows
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_job import FitJob
from promptstore.tuning.rows import Rows

BATCH = 32
STEPS = 60 if torch.cuda.is_available() else 6
WARMUP = STEPS // 3
SIZES = ("1B", "3B", "135M") if torch.cuda.is_available() else ("tiny",)
# Kernels by their names in a profile.
KERNELS = {"matrix products": r"gemm|nvjet|cutlass|cublas", "attention": r"flex|flash|fmha|sdpa"}
TASK = TaskSpec(
    name="random",
    kind="classification",
    template="Review: {text} Sentiment:",
    data=DataSource("random", "random"),
    labels=(Label("good", "positive"), Label("bad", "terrible")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement, in the form of `make bench`."""

    name: str
    value: float
    unit: str
    target: str = ""

    def to_json(self) -> dict[str, Any]:
        holds = None if not self.target else self._holds()
        return {**{name: getattr(self, name) for name in ("name", "value", "unit", "target")}, "holds": holds}

    def _holds(self) -> bool:
        sign, bound = self.target.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)


def measurements(sizes: Sequence[str], *, profile: bool = False) -> Iterator[Row]:
    """The rows of these sizes. About six minutes on an H200 for all."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    peak = _matrix_rate(device)
    yield Row("bf16 matrix products of the device", peak / 1e12, "TFLOP/s")
    for size in sizes:
        network = _network(size, device)
        model = _frozen(network)
        if size != "3B":
            yield from _one_prompt(size, model, device, can_compile=on_gpu)
        yield from _eight_prompts(size, model, peak, _flops_per_position(network), can_compile=on_gpu)
        if profile:
            yield from _profile(size, model, can_compile=on_gpu)


def _one_prompt(size: str, model: FrozenModel, device: torch.device, *, can_compile: bool) -> Iterator[Row]:
    for tokens in (20, 100):
        name = f"{size}, {tokens} virtual tokens, batch {BATCH}"
        ours = _ours(model, prompts=1, tokens=tokens, compiled=can_compile)
        yield Row(f"{name}: ours", ours.examples_per_s, "examples/s")
        if tokens == 20 and can_compile:
            yield Row(f"{size}: the first {WARMUP} steps of a process, compiling included", ours.first_s, "s")
        if importlib.util.find_spec("peft") is not None:
            peft = _peft(size, device, tokens)
            yield Row(f"{name}: PEFT, plain loop", peft, "examples/s")
            yield Row(f"{name}: ours / PEFT", ours.examples_per_s / peft, "x", ">= 2" if tokens == 100 else "")
    plain = _ours(model, prompts=1, tokens=100, compiled=False)
    yield Row(f"{name}: ours, nothing compiled, as in a short fit", plain.examples_per_s, "examples/s")
    if importlib.util.find_spec("peft") is not None:
        yield Row(f"{name}: ours, nothing compiled / PEFT", plain.examples_per_s / _peft(size, device, tokens), "x")
    yield Row(f"{name}: compiled / not compiled", ours.examples_per_s / plain.examples_per_s, "x")


def _eight_prompts(size: str, model: FrozenModel, peak: float, flops: float, *, can_compile: bool) -> Iterator[Row]:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    eight = _ours(model, prompts=8, tokens=100, compiled=can_compile)
    name = f"{size}, eight prompts of 100 virtual tokens"
    yield Row(f"{name}: ours", eight.examples_per_s, "examples/s")
    plain = _ours(model, prompts=8, tokens=100, compiled=False)
    yield Row(f"{name}: ours, nothing compiled", plain.examples_per_s, "examples/s")
    if importlib.util.find_spec("peft") is not None:
        ratio = _peft(size, model.device, 100) / eight.examples_per_s
        yield Row(f"{name}: wall clock together / PEFT one by one", ratio, "x", "<= 0.25")
    share = flops * eight.tokens_per_s / peak
    yield Row(f"{name}: share of the matrix-product rate", share, "1", ">= 0.5" if size.endswith("B") else "")
    if model.device.type == "cuda":
        yield Row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


@dataclass(frozen=True, slots=True)
class Rate:
    examples_per_s: float
    tokens_per_s: float
    first_s: float


def _ours(model: FrozenModel, *, prompts: int, tokens: int, compiled: bool) -> Rate:
    config = TuneConfig(
        num_virtual_tokens=tokens,
        steps=STEPS,
        warmup_steps=0,
        batch_size=BATCH,
        evaluate_every=STEPS,
        max_validation_rows=1,
    )
    jobs = [FitJob(f"p{at}", TASK, config, _rows(512, seed=at), _rows(4, seed=99)) for at in range(prompts)]
    options = FitOptions(report_every=WARMUP, compile_layers=compiled)
    began = time.perf_counter()
    events = fit(model, jobs, options=options)
    first = next(event for event in events if isinstance(event, StepReport))
    first_s = time.perf_counter() - began
    reports = [first, *(event for event in events if isinstance(event, StepReport))]
    steady = {event.step: event for event in reports if event.step > WARMUP}.values()
    return Rate(
        len(steady) / sum(1 / event.examples_per_s for event in steady),
        len(steady) / sum(1 / event.tokens_per_s for event in steady),
        first_s,
    )


@cache
def _peft(size: str, device: torch.device, tokens: int) -> float:
    """Examples per second of PEFT's model in a plain loop: right padding, AdamW, one host wait at the end."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    network = _network(size, device)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens)
    peft = get_peft_model(network, config).to(device)
    optimiser = torch.optim.AdamW([each for each in peft.parameters() if each.requires_grad], lr=0.03)
    model = _frozen(_network("tiny", torch.device("cpu")))
    examples = encode_rows(TASK, model, _rows(512, seed=0), num_virtual_tokens=tokens).examples
    began = 0.0
    for step in range(STEPS):
        if step == WARMUP:
            wait(device)
            began = time.perf_counter()
        batch = [examples[(step * BATCH + at) % len(examples)] for at in range(BATCH)]
        peft(**_padded(batch, device)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    wait(device)
    return (STEPS - WARMUP) * BATCH / (time.perf_counter() - began)


def _padded(batch: list[Example], device: torch.device) -> dict[str, torch.Tensor]:
    rows = [[*example.input_ids, *example.answer_ids] for example in batch]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    last = torch.arange(width, device=device)[None] == mask.sum(1, keepdim=True) - 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~last, -100)}


def _rows(count: int, seed: int) -> Rows:
    """Random sentences of 8 to 60 words, as long as those of sst2 and ag_news."""
    generator = torch.Generator().manual_seed(seed)
    words = ["good", "bad", "film", "news", "sport", "world", "science", "business", "text", "review", "the", "a"]

    def sentence() -> str:
        length = int(torch.randint(8, 61, (), generator=generator))
        return " ".join(words[at] for at in torch.randint(0, len(words), (length,), generator=generator).tolist())

    return Rows.of([{"text": sentence(), "label": ("good", "bad")[at % 2]} for at in range(count)])


def _network(size: str, device: torch.device) -> Any:
    """A Llama with random weights: the shape of SmolLM2-135M, of Llama 3.2 1B or 3B, or a tiny one."""
    shapes = {
        "tiny": (32, 64, 2, 4, 2, 512),
        "135M": (576, 1536, 30, 9, 3, 49152),
        "1B": (2048, 8192, 16, 32, 8, 128256),
        "3B": (3072, 8192, 28, 24, 8, 128256),
    }
    hidden, inner, layers, heads, shared, vocabulary = shapes[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM(config).to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def _frozen(network: Any) -> FrozenModel:
    tokenizer = tiny_tokenizer()
    fingerprint = BaseModelFingerprint(
        "LlamaForCausalLM", network.config.hidden_size, "0" * 64, tokenizer_digest(tokenizer), "random"
    )
    return freeze(network, tokenizer, fingerprint)


def _flops_per_position(network: Any) -> float:
    """Matrix products of one position, forward and backward to activations alone: 4 for each weight of a layer."""
    layers = sum(each.numel() for name, each in network.named_parameters() if "layers." in name)
    return 4.0 * layers


def _matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large bf16 product."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = _best_of(lambda: left @ right, device)
    return float(2 * side**3 / seconds)


def _best_of(work: Callable[[], Any], device: torch.device, tries: int = 20) -> float:
    taken = []
    for _ in range(tries if device.type == "cuda" else 2):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _profile(size: str, model: FrozenModel, *, can_compile: bool) -> Iterator[Row]:
    """Where the time of ten steps of eight prompts goes, by kind of kernel."""
    config = TuneConfig(num_virtual_tokens=100, steps=STEPS, warmup_steps=0, batch_size=BATCH, evaluate_every=STEPS)
    jobs = [FitJob(f"p{at}", TASK, config, _rows(512, seed=at), _rows(4, seed=99)) for at in range(8)]
    events = fit(model, jobs, options=FitOptions(report_every=WARMUP, compile_layers=can_compile))
    list(islice(events, 8 * WARMUP))
    with torch.profiler.profile() as profiler:
        list(islice(events, 8 * WARMUP))
    found = dict.fromkeys((*KERNELS, "the rest"), 0.0)
    for each in profiler.key_averages():
        if model.device.type == "cuda" and each.device_type != torch.autograd.DeviceType.CUDA:
            continue  # the call of a kernel, which is listed itself
        kind = next((name for name, pattern in KERNELS.items() if re.search(pattern, each.key)), "the rest")
        found[kind] += (each.self_device_time_total or each.self_cpu_time_total) / 1e6
    for kind, seconds in found.items():
        yield Row(f"{size}, eight prompts, share of the kernels' time: {kind}", seconds / sum(found.values()), "1")
    key = "self_cuda_time_total" if model.device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu.json"))
    parser.add_argument("--sizes", nargs="+", default=SIZES, help=f"of {', '.join(SIZES)}")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    rows = []
    for row in measurements(arguments.sizes, profile=arguments.profile):
        found = {**row.to_json(), "command": "make bench-gpu"}
        rows.append(found)
        print(f"{row.name:75} {row.value:12.4g} {row.unit:12} {row.target:8} {found['holds']}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
