"""`python -m infra.bench.promotion_chart`: the latency of real requests while new versions are promoted, as a picture.

Server and clients are processes of their own; clients ask at half of what the server can answer, at times that are set
beforehand. Every few seconds this process publishes and promotes a new version of a task. A dot is a request, its
colour the version that answered; a line is a promotion.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.bench.serving_http import bodies_of, demo_server, task_name
from infra.bench.serving_load import OK, Asked, Clients, Load, ask, p99, throughput
from infra.bench.serving_traffic import LIMITS, TASK, Traffic, random_prompts, served_model
from promptstore.lm.frozen import FrozenModel

PICTURE = Path("infra/docs/latency-through-promotions.png")
VIRTUAL_TOKENS = 100
POLL_S = 0.25
WARM_UP_S = 3.0
# Around a promotion: what counts as "during" it in the comparison of latencies.
NEAR_S = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured. promoted_at_s: by the clock of the requests. per_s: requests a second."""

    asked: Sequence[Asked]
    promoted_at_s: Sequence[float]
    per_s: float

    @property
    def start_s(self) -> float:
        return self.asked[0].due_s

    def near(self, *, is_near: bool) -> list[float]:
        """Latencies of the requests due within a second after a promotion, or of the others."""
        return [
            each.latency_s
            for each in self.asked
            if any(0 <= each.due_s - at <= NEAR_S for at in self.promoted_at_s) == is_near
        ]


def measure(model: FrozenModel, *, promotions: int, every_s: float, load: float) -> Run:
    """Serves the demo's model and promotes under load. load: share of what the server can answer."""
    traffic = Traffic(model, VIRTUAL_TOKENS, prompts=2)
    prompts = random_prompts(model, 2 + promotions, VIRTUAL_TOKENS)[2:]
    with demo_server(traffic, "--poll", str(POLL_S)) as demo:
        everything = Load(demo.url, bodies_of(traffic), clients=2 * LIMITS.rows, requests=8 * LIMITS.rows)
        per_s = load * throughput(ask(everything))
        clients = Clients(replace(everything, clients=0, per_s=per_s, requests=None))
        time.sleep(WARM_UP_S)
        promoted_at_s = []
        for prompt in prompts:
            time.sleep(every_s)
            task = replace(TASK, name=task_name(0))
            demo.store.publish(prompt, task, alias="production", force=True, reason="benchmark")
            promoted_at_s.append(time.monotonic())
        time.sleep(every_s)
        return Run(clients.end(), promoted_at_s, per_s)


def draw(run: Run, title: str, path: Path) -> None:
    """The picture of `run`, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for version in sorted({each.version for each in run.asked if each.status == OK}):
        axes.scatter(*_places(run, [each for each in run.asked if each.version == version]), s=9, label=version)
    if failed := [each for each in run.asked if each.status != OK]:
        axes.scatter(*_places(run, failed), marker="x", c="red", label="failed")
    for number, at in enumerate(run.promoted_at_s):
        label = "promotion" if number == 0 else None
        axes.axvline(at - run.start_s, color="black", linewidth=0.8, linestyle="--", label=label)
    axes.set(xlabel="seconds", ylabel="latency, ms", ylim=(0, None), title=title)
    figure.legend(loc="outside lower center", fontsize="small", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def summary(run: Run) -> str:
    """What the picture shows, in one line."""
    failed = sum(each.status != OK for each in run.asked)
    near, far = (1000 * p99(run.near(is_near=is_near)) for is_near in (True, False))
    return (
        f"{len(run.asked)} requests at {run.per_s:.0f}/s, {len(run.promoted_at_s)} promotions, {failed} failed; "
        f"p99 {near:.0f} ms within {NEAR_S:g} s of a promotion, {far:.0f} ms otherwise"
    )


def _places(run: Run, asked: Sequence[Asked]) -> tuple[list[float], list[float]]:
    """Where dots stand: seconds since the first request, and milliseconds of latency."""
    return [each.due_s - run.start_s for each in asked], [1000 * each.latency_s for each in asked]


def main() -> None:
    """Measure and draw. About two minutes on two quiet cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promotions", type=int, default=6)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two promotions")
    parser.add_argument("--load", type=float, default=0.5, help="share of what the server can answer")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    run = measure(served_model("float32"), promotions=given.promotions, every_s=given.every, load=given.load)
    said = summary(run)
    title = f"SmolLM2-135M, {VIRTUAL_TOKENS} virtual tokens, one CPU thread, polled every {POLL_S:g} s"
    draw(run, f"{title}\n{said}", given.out)
    print(f"{said}\nwritten to {given.out}")


if __name__ == "__main__":
    main()
