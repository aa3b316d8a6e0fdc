"""A place for jobs on a tiny model: data that can be learnt, a task file, a store, MLflow on SQLite."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptstore.core.task import TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.settings import Settings, load_settings
from promptstore.store.prompt_store import PromptStore
from promptstore.testing.tiny_models import tiny_llama
from promptstore.tracking import Patience, open_tracker
from promptstore.tuning.job import JobTools, tune_tasks
from promptstore.tuning.job_progress import JobProgress, SilentProgress
from promptstore.tuning.job_result import JobResult
from promptstore.tuning.task_file import read_task
from promptstore.wiring import open_prompt_store

QUICK: Mapping[str, Any] = {
    "steps": 24,
    "loss": "labels",
    "evaluate_every": 8,
    "batch_size": 8,
    "num_virtual_tokens": 8,
    "learning_rate": 0.3,
}
# From random tokens versions of other seeds and data differ, and are about as good.
FROM_TOKENS: Mapping[str, Any] = {**QUICK, "initialise": "vocabulary"}
IMPATIENT = Patience(interval_s=0.05, rest=0, retries_s=(), return_s=3600, close_s=20)
SAID: Mapping[str, tuple[str, ...]] = {"yes": ("good", "great", "positive"), "no": ("bad", "terrible", "negative")}
FILLING = ("the", "a", "was", "it", "and", "film", "product", "editorial", "review", "of")


@dataclass(frozen=True, slots=True)
class JobPlace:
    """One folder with everything that jobs read and write."""

    folder: Path

    @property
    def settings(self) -> Settings:
        return load_settings(
            store=str(self.folder / "store"),
            state_dir=self.folder / "state",
            cache_dir=self.folder / "cache",
            mlflow_uri=self.mlflow_uri,
            actor="tester",
        )

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def environment(self, model: Path) -> dict[str, str]:
        """The same settings, for other processes."""
        settings = self.settings
        return {
            "PROMPTSTORE_STORE": settings.store,
            "PROMPTSTORE_STATE_DIR": str(settings.state_dir),
            "PROMPTSTORE_CACHE_DIR": str(settings.cache_dir),
            "PROMPTSTORE_MLFLOW_URI": settings.mlflow_uri,
            "PROMPTSTORE_ACTOR": settings.actor,
            "PROMPTSTORE_MODEL": str(model),
            "PROMPTSTORE_DTYPE": "float32",
            "OMP_NUM_THREADS": "1",
        }

    def store(self) -> PromptStore:
        return open_prompt_store(self.settings)

    def task_file(self, name: str, *, is_mislabelled: bool = False, rows: int = 120, seed: int = 0) -> Path:
        """A task whose label follows from a word of the text; a mislabelled one's training rows say the opposite."""
        draw = random.Random(seed)
        data = {"train": is_mislabelled, "validation": False}
        for split, is_wrong in data.items():
            lines = [json.dumps(_row(draw, is_wrong=is_wrong)) for _ in range(rows)]
            self._file(name, f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        file = self._file(name, "toml")
        file.write_text(
            f'name = "{name.partition(".")[0]}"\nkind = "classification"\ntemplate = "Review: {{text}} Sentiment:"\n'
            '[labels]\nyes = "positive"\nno = "negative"\n'
            f'[data]\ntrain = "{name}.train.jsonl"\nvalidation = "{name}.validation.jsonl"\n'
        )
        return file

    def task(self, name: str, *, is_mislabelled: bool = False) -> TaskSpec:
        return read_task(self.task_file(name, is_mislabelled=is_mislabelled))

    def tools(self, model: FrozenModel, job: str, progress: JobProgress | None = None) -> JobTools:
        settings = self.settings
        spool = settings.state_dir / "tracking"
        return JobTools(
            store=self.store(),
            model=model,
            tracker=open_tracker(settings.mlflow_uri, spool_folder=spool, job=job, patience=IMPATIENT),
            folder=settings.state_dir / "jobs",
            settings=settings,
            progress=progress or SilentProgress(),
            git_commit="0" * 40,
        )

    def tune(self, model: FrozenModel, *tasks: TaskSpec, job: str = "job", **overrides: Any) -> JobResult:
        """A short job, in this process."""
        return tune_tasks(tasks, job=job, tools=self.tools(model, job), overrides={**FROM_TOKENS, **overrides})

    def _file(self, name: str, ending: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name}.{ending}"


def write_tiny_model(folder: Path, *, seed: int = 0, hidden_size: int = 32) -> Path:
    """A tiny model on disk, for processes that open it by its folder."""
    model = tiny_llama(seed=seed, hidden_size=hidden_size)
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def _row(draw: random.Random, *, is_wrong: bool) -> dict[str, str]:
    label = draw.choice(sorted(SAID))
    words = [draw.choice(FILLING) for _ in range(4)]
    words.insert(draw.randrange(5), draw.choice(SAID[label]))
    said = {"yes": "no", "no": "yes"}[label] if is_wrong else label
    return {"text": " ".join(words), "label": said}
