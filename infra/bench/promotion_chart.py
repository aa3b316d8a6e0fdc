"""`python -m infra.bench.promotion_chart`: the latency of real requests while new versions are promoted, as a picture.

Clients in a process of their own ask at half of what the server can answer. Every few seconds a new version of a task
is published and promoted. A dot is a request, its colour the version that answered; a line is a promotion.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

from infra.bench.serving_clients import REFS
from infra.bench.serving_engine import LIMITS, TASK, bench_model
from promptstore.lm.frozen import FrozenModel
from promptstore.objects.local import LocalObjectStore
from promptstore.runtime.scheduler import SchedulerLimits
from promptstore.serving.options import ServerOptions
from promptstore.store.ledger import Ledger
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.engine_rig import random_prompt
from promptstore.testing.served import LiveServer, live_server, new_store

PICTURE = Path("infra/docs/latency-through-promotions.png")
VIRTUAL_TOKENS = 100
POLL_S = 0.25
WARM_UP_S = 3.0
# Around a promotion: what counts as "during" it in the comparison of latencies.
NEAR_S = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """at_s: when it was sent, since the first one."""

    at_s: float
    seconds: float
    status: int
    version: str


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured. promoted_at_s: since the first request; rate: requests per second."""

    requests: Sequence[Request]
    promoted_at_s: Sequence[float]
    rate: float

    def near(self, *, is_near: bool) -> list[float]:
        """Latencies of the requests sent within a second after a promotion, or of the others."""
        return [
            each.seconds
            for each in self.requests
            if any(0 <= each.at_s - at <= NEAR_S for at in self.promoted_at_s) == is_near
        ]


def measure(model: FrozenModel, *, promotions: int, every_s: float, load: float) -> Run:
    """Serves `model` and promotes under load. load: share of what the server can answer."""
    with tempfile.TemporaryDirectory() as folder:
        objects = LocalObjectStore(Path(folder))
        writer = new_store(objects)
        for number, name in enumerate(REFS):
            _promote_new(writer, model, name, number)
        reader = PromptStore(Ledger.open(objects, actor="server"), objects)
        options = ServerOptions(poll_s=POLL_S, scheduler=SchedulerLimits(batch=LIMITS))
        with live_server(reader, model, options) as live:
            rate = load * _capacity(live)
            seconds = WARM_UP_S + every_s * (promotions + 1)
            clients = _clients(live, "--rate", str(rate), "--seconds", str(seconds))
            time.sleep(WARM_UP_S)
            promoted_at = []
            for number in range(promotions):
                time.sleep(every_s)
                _promote_new(writer, model, REFS[0], 100 + number)
                promoted_at.append(time.monotonic())
            said, _ = clients.communicate()
    answered = sorted(json.loads(said), key=lambda each: each[2])
    start = answered[0][2]
    requests = [Request(at - start, seconds, status, version) for status, seconds, at, version in answered]
    return Run(requests, [at - start for at in promoted_at], rate)


def draw(run: Run, title: str, path: Path) -> None:
    """The picture of `run`, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for version in sorted({each.version for each in run.requests if each.status == 200}):
        dots = [each for each in run.requests if each.version == version]
        axes.scatter([dot.at_s for dot in dots], [1000 * dot.seconds for dot in dots], s=9, label=version)
    if failed := [each for each in run.requests if each.status != 200]:
        times, spent = [each.at_s for each in failed], [1000 * each.seconds for each in failed]
        axes.scatter(times, spent, marker="x", c="red", label="failed")
    for number, at in enumerate(run.promoted_at_s):
        axes.axvline(at, color="black", linewidth=0.8, linestyle="--", label="promotion" if number == 0 else None)
    axes.set(xlabel="seconds", ylabel="latency, ms", ylim=(0, None), title=title)
    figure.legend(loc="outside lower center", fontsize="small", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def summary(run: Run) -> str:
    """What the picture shows, in one line."""
    failed = sum(each.status != 200 for each in run.requests)
    near, far = (1000 * _p99(run.near(is_near=is_near)) for is_near in (True, False))
    return (
        f"{len(run.requests)} requests at {run.rate:.0f}/s, {len(run.promoted_at_s)} promotions, {failed} failed; "
        f"p99 {near:.0f} ms within {NEAR_S:g} s of a promotion, {far:.0f} ms otherwise"
    )


def _promote_new(store: PromptStore, model: FrozenModel, name: str, seed: int) -> None:
    version = store.publish(random_prompt(model, VIRTUAL_TOKENS, seed), replace(TASK, name=name), reason="bench")
    store.promote(str(version), reason="bench", force=True)


def _capacity(live: LiveServer) -> float:
    """Requests per second that eight clients get answered."""
    said, _ = _clients(live, "--clients", str(LIMITS.rows), "--seconds", str(2 * WARM_UP_S)).communicate()
    return len(json.loads(said)) / (2 * WARM_UP_S)


def _clients(live: LiveServer, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "infra.bench.serving_clients", live.url, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98] if len(seconds) > 1 else float("nan")


def main() -> None:
    """Measure and draw. About two minutes on two quiet cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promotions", type=int, default=6)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two promotions")
    parser.add_argument("--load", type=float, default=0.5, help="share of what the server can answer")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    run = measure(bench_model("float32"), promotions=given.promotions, every_s=given.every, load=given.load)
    said = summary(run)
    title = f"SmolLM2-135M, {VIRTUAL_TOKENS} virtual tokens, one CPU thread, polled every {POLL_S:g} s"
    draw(run, f"{title}\n{said}", given.out)
    print(f"{said}\nwritten to {given.out}")


if __name__ == "__main__":
    main()
