"""Speed of serving: the engine against PEFT, and what HTTP, queueing and following add to it."""

from infra.bench import serving_engine as engine
from infra.bench import serving_http as http
from infra.bench.measurement import Measurement


def measurements() -> list[Measurement]:
    """The rows of `make bench` that concern serving. About eight minutes on two quiet cores."""
    rows: list[Measurement] = []
    for dtype in ("float32", "bfloat16"):
        rows += engine.mixed_traffic(dtype, 100, (">= 6", ">= 5"))
        rows += engine.mixed_traffic(dtype, 20, (">= 3", ">= 2.5"))
    model = engine.bench_model("float32")
    rows += engine.many_prompts(model)
    rows += engine.cold_prompt(model)
    rows += http.http_cost(model)
    rows += http.overload(model)
    return [*rows, *http.promotions()]
