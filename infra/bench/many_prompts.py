"""A thousand prompts in one job: `python -m infra.bench.many_prompts`; memory, checkpoint and time of each.

On a tiny model, so that what is seen is the prompts and not the model. Three minutes on a quiet core.
"""

import resource
import time
from dataclasses import dataclass, field

import torch

from infra.bench.measurement import Measurement, measured
from promptstore.testing.tiny_models import tiny_llama
from promptstore.testing.tuning_tasks import SENTIMENT, sentiment_rows
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import FitFinished
from promptstore.tuning.fit import FitOptions, fit
from promptstore.tuning.fit_job import FitJob

COMMAND = "python -m infra.bench.many_prompts"
PROMPTS, TOKENS, HIDDEN = 1000, 20, 64
PROMPT_BYTES = 4 * TOKENS * HIDDEN


@dataclass(slots=True)
class _Slot:
    sizes: list[int] = field(default_factory=list)

    def load(self) -> bytes | None:
        return None

    def save(self, data: bytes) -> None:
        self.sizes.append(len(data))


def measurements() -> list[Measurement]:
    model = tiny_llama(hidden_size=HIDDEN)
    rows = sentiment_rows(40)
    config = TuneConfig.from_mapping(
        {"num_virtual_tokens": TOKENS, "steps": 2, "warmup_steps": 0, "batch_size": 2, "evaluate_every": 2}
    )
    jobs = [
        FitJob(f"p{at}", SENTIMENT, TuneConfig(**{**config.to_json(), "seed": at}), rows, rows[:2])
        for at in range(PROMPTS)
    ]
    list(fit(model, jobs[:64]))  # what one round of places takes, whoever sits there
    before, began = _peak_bytes(), time.process_time()
    slot = _Slot()
    options = FitOptions(save_every_s=1e9)
    finished = sum(isinstance(event, FitFinished) for event in fit(model, jobs, options=options, checkpoint=slot))
    seconds, grown = time.process_time() - began, _peak_bytes() - before
    name = f"tuning, {PROMPTS} prompts in one job"
    return [
        measured(f"{name}: finished", finished, "prompts", target=f">= {PROMPTS}", command=COMMAND),
        measured(f"{name}: memory each / a prompt", grown / PROMPTS / PROMPT_BYTES, "x", command=COMMAND),
        measured(f"{name}: checkpoint each / a prompt", slot.sizes[-1] / PROMPTS / PROMPT_BYTES, "x", command=COMMAND),
        measured(f"{name}: CPU time", seconds, "s", command=COMMAND),
    ]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in measurements():
        print(f"{row.name:60} {row.value:10.4g} {row.unit}", flush=True)
