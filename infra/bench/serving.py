"""Speed of serving: the engine against PEFT, and what HTTP, queueing and following add to it."""

import torch
from rich.console import Console

from infra.bench import serving_engine as engine
from infra.bench import serving_http as http
from infra.bench import serving_promotions as following
from infra.bench.measurement import Measurement
from infra.bench.serving_traffic import served_model
from promptstore.lm.placement import choose_dtype


def measurements() -> list[Measurement]:
    """The rows of `make bench` that concern serving. Sized for less than twelve minutes on two quiet cores."""
    rows: list[Measurement] = []
    for dtype in _dtypes():
        rows += engine.mixed_traffic(dtype, 100, (">= 6", ">= 5"))
        rows += engine.mixed_traffic(dtype, 20, (">= 3", ">= 2.5"))
    model = served_model("float32")
    rows += engine.many_prompts(model)
    rows += engine.cold_prompt(model)
    rows += http.cold_prompt(model)
    rows += http.http_cost(model)
    rows += http.overload(model)
    rows += following.promotions()
    rows += following.replicas()
    return [*rows, *following.new_versions(model)]


def _dtypes() -> tuple[str, ...]:
    """float32, and bfloat16 where the processor computes it: others emulate it, many times slower."""
    if choose_dtype("auto", torch.device("cpu")) == torch.bfloat16:
        return ("float32", "bfloat16")
    Console().print("serving: bfloat16 is skipped, this processor only emulates it")
    return ("float32",)
