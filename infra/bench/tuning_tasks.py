"""The labelled tasks of the tuning benchmarks, and where their rows are."""

import json
import os
from pathlib import Path

from promptstore.core.task import DataSource, Label, TaskSpec
from promptstore.errors import NotFoundError
from promptstore.tuning.rows import Rows

# Beside the repository; PROMPTSTORE_BENCH_DATA names another folder of <task>/{train,validation}.jsonl.
DATA = Path(os.environ.get("PROMPTSTORE_BENCH_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def _task(name: str, template: str, *labels: str | tuple[str, str]) -> TaskSpec:
    pairs = [(label, label) if isinstance(label, str) else label for label in labels]
    source = DataSource(str(DATA / name / "train.jsonl"), str(DATA / name / "validation.jsonl"))
    return TaskSpec(
        name=name, kind="classification", template=template, data=source, labels=tuple(Label(*pair) for pair in pairs)
    )


TASKS = {
    task.name: task
    for task in (
        _task("sst2", "Review: {text}\nSentiment:", "negative", "positive"),
        _task(
            "trec6", "Question: {text}\nType:", "abbreviation", "entity", "description", "person", "location", "number"
        ),
        _task("ag_news", "Article: {text}\nTopic:", "world", "sports", "business", "technology"),
        _task("boolq", "{passage}\nQuestion: {question}?\nAnswer:", "yes", "no"),
        _task("sms_spam", "Message: {text}\nType:", ("ham", "normal"), "spam"),
        _task("uci_sentiment", "Review: {text}\nSentiment:", "negative", "positive"),
        _task("rte", "{premise}\nSo {hypothesis}\nTrue or false?", ("entailment", "true"), ("not entailment", "false")),
        _task("wic", '{sentence1}\n{sentence2}\nIs "{word}" used in the same sense?', "yes", "no"),
        _task(
            "cb",
            "{premise}\nSo {hypothesis}\nTrue, false or neither?",
            ("entailment", "true"),
            ("contradiction", "false"),
            ("neutral", "neither"),
        ),
    )
}


def load_split(task: str, split: str) -> Rows:
    """The rows of one split.

    Raises:
        NotFoundError: the data folder is not there.
    """
    path = DATA / task / f"{split}.jsonl"
    if not path.exists():
        raise NotFoundError(f"the benchmarks need {path}; set PROMPTSTORE_BENCH_DATA to a folder of labelled tasks")
    with path.open(encoding="utf-8") as lines:
        return Rows.of([json.loads(line) for line in lines], f"{task}/{split}")
