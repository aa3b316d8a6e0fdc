"""Where the time of a step goes, by part: `python -m infra.bench.tuning_parts`; two minutes on a quiet core.

Part by part what `promptstore.tuning.gradient` does, with a wait for the device after each. On a CPU in CPU seconds.
The distance to the rate of matrix products is measured on a GPU, by `infra.bench.tuning_gpu`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import platformdirs
import torch

from infra.bench.measurement import Measurement, measured
from infra.bench.tuning_gpu import wait
from infra.bench.tuning_tasks import TASKS, load_split
from promptstore.lm.frozen import FrozenModel
from promptstore.lm.source import open_model
from promptstore.tuning.answers import answer_losses
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.fit_job import FitJob, prepare
from promptstore.tuning.fitting import Fitting
from promptstore.tuning.packed import choose_passes
from promptstore.tuning.passes import Item

COMMAND = "python -m infra.bench.tuning_parts"
SOURCE = "asset:smollm2-135m"
STEPS, BATCH = 4, 16


@dataclass(slots=True)
class Parts:
    """Seconds by part."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        clock: Callable[[], float] = time.perf_counter if self.device.type == "cuda" else time.process_time
        began = clock()
        yield
        wait(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + clock() - began


def measurements() -> list[Measurement]:
    model = open_model(SOURCE, cache_dir=platformdirs.user_cache_path("promptstore"))
    found = []
    for tokens in (20, 100):
        parts = profile(model, tokens)
        name = f"tuning, sst2, {tokens} virtual tokens, share of a step"
        found.append(
            measured(
                f"tuning, sst2, {tokens} virtual tokens, a step", parts.total / (STEPS - 1), "CPU s", command=COMMAND
            )
        )
        found += [
            measured(f"{name}: {part}", seconds / parts.total, "1", command=COMMAND)
            for part, seconds in parts.seconds.items()
        ]
    return found


def profile(model: FrozenModel, tokens: int) -> Parts:
    """Parts of a few steps, the first left out."""
    rows = load_split("sst2", "train")[: BATCH * STEPS]
    config = TuneConfig(num_virtual_tokens=tokens, steps=STEPS, warmup_steps=0, batch_size=BATCH)
    fitting = Fitting(model, prepare(model, [FitJob("sst2", TASKS["sst2"], config, rows, rows[:2])])[0])
    passes = choose_passes(model)
    parts = Parts(model.device)
    for step in range(STEPS):
        if step == 1:
            parts = Parts(model.device)
        items = [Item(0, example) for example in fitting.next_rows()]
        open_pass = passes.open([fitting.group])
        with parts.timed("forward"):
            states = open_pass.states(items, is_whole=True)
        with parts.timed("head and loss"):
            loss = answer_losses(model, states, items, [fitting.label_token_ids]).mean()
        with parts.timed("backward"):
            torch.autograd.backward(loss)
            open_pass.close()
        with parts.timed("optimiser"):
            fitting.update(loss.detach())
    return parts


if __name__ == "__main__":
    for row in measurements():
        print(f"{row.name:85} {row.value:8.3f}", flush=True)
