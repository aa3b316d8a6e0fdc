"""Small tasks with made-up rows that the tiny models can learn something from."""

import numpy as np
import numpy.typing as npt

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.fit_job import FitJob, prepare
from promptstore.tuning.initialise import initialise
from promptstore.tuning.rows import Rows

_GOOD, _BAD = ("good", "great", "positive", "yes"), ("bad", "terrible", "negative", "no")
_OTHERS = ("film", "news", "sport", "world", "science", "business", "text", "review", "topic", "the", "a", "and", "was")
_NOWHERE = DataSource("rows made in memory", "rows made in memory")

SENTIMENT = TaskSpec(
    name="sentiment",
    kind="classification",
    template="Review: {text} Sentiment:",
    data=_NOWHERE,
    labels=(Label("good", "positive"), Label("bad", "terrible")),
)
ECHO = TaskSpec(
    name="echo",
    kind="generation",
    template="Text: {text} Answer:",
    data=_NOWHERE,
    target_field="answer",
    max_target_tokens=4,
)

SHORT = {"steps": 12, "batch_size": 4, "evaluate_every": 6, "warmup_steps": 2, "learning_rate": 0.3}


def sentiment_rows(count: int, seed: int = 0) -> Rows:
    """Texts of 2 to 12 words with one word that decides the label."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = str(draw.choice(["good", "bad"]))
        words = [*draw.choice(_OTHERS, size=int(draw.integers(1, 12))), draw.choice(_GOOD if label == "good" else _BAD)]
        rows.append({"text": " ".join(map(str, draw.permutation(words))), "label": label})
    return Rows.of(rows)


def echo_rows(count: int, seed: int = 0) -> Rows:
    """Texts whose first word is the answer."""
    draw = np.random.default_rng(seed)
    texts = [[str(word) for word in draw.choice(_OTHERS, size=int(draw.integers(1, 8)))] for _ in range(count)]
    return Rows.of([{"text": " ".join(words), "answer": words[0]} for words in texts])


def sentiment_job(name: str = "one", **settings: object) -> FitJob:
    """A short fit; `settings` go over those of a small prompt with few steps."""
    config = {
        "num_virtual_tokens": 4,
        "steps": 12,
        "batch_size": 4,
        "evaluate_every": 6,
        "warmup_steps": 2,
        "learning_rate": 0.3,
    }
    return FitJob(
        name, SENTIMENT, TuneConfig.from_mapping({**config, **settings}), sentiment_rows(30), sentiment_rows(20, seed=1)
    )


def echo_job(name: str = "echo", **settings: object) -> FitJob:
    """As `sentiment_job`, for a task that generates text."""
    config = {
        "num_virtual_tokens": 5,
        "steps": 12,
        "batch_size": 4,
        "evaluate_every": 6,
        "warmup_steps": 2,
        "learning_rate": 0.3,
    }
    return FitJob(name, ECHO, TuneConfig.from_mapping({**config, **settings}), echo_rows(30), echo_rows(20, seed=1))


def start_of(model: FrozenModel, job: FitJob) -> npt.NDArray[np.float32]:
    """The values that a fit of `job` begins with, [P, H]."""
    (prepared,) = prepare(model, [job])
    return initialise(model, job.task, job.config, prepared.train).cpu().numpy()
