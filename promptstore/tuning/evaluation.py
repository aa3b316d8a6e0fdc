"""What one prompt, or the bare model, did on one set of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskKind, TaskSpec
from promptstore.tuning.metrics import LOWER_IS_BETTER, METRICS, Columns, main_metric
from promptstore.tuning.rows import Row, as_rows


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """One prompt of one task, `None` for the bare model, and the rows to judge it on."""

    task: TaskSpec
    prompt: SoftPrompt | None
    rows: Sequence[Row]

    @property
    def alone(self) -> "list[EvaluationCase]":
        """A case for each member of an ensemble; else this one."""
        if self.prompt is None or self.prompt.ensemble is None:
            return [self]
        return [replace(self, prompt=member) for member in self.prompt.members]


@dataclass(frozen=True, slots=True)
class Interval:
    """A bootstrap percentile interval."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Time to first token: the median over so many rows, each alone in its batch."""

    median_ms: float
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Metrics and what they rest on; two evaluations of equal `data_digest` are of the same rows in the same order.

    metric: name of the task's own metric. columns: per-row numbers that the metrics are computed from.
    predictions, targets: per row the label name or text. seconds: time it took, the encoding of the rows left out.
    members: of an ensemble, what each of its prompts did alone. latency: where somebody measured it.
    """

    task: str
    kind: TaskKind
    metric: str
    labels: tuple[str, ...]
    predictions: tuple[str, ...]
    targets: tuple[str, ...]
    columns: Columns = field(repr=False)
    data_digest: str
    seconds: float
    members: "tuple[Evaluation, ...]" = ()
    latency: Latency | None = None

    @classmethod
    def of(cls, case: EvaluationCase, columns: Columns, predictions: Sequence[str], seconds: float) -> "Evaluation":
        """Of a case whose prompt is no ensemble."""
        task = case.task
        return cls(
            task=task.name,
            kind=task.kind,
            metric=main_metric(task.kind, task.metric),
            labels=task.label_names,
            predictions=tuple(predictions),
            targets=tuple(row[task.target_field] for row in case.rows),
            columns=columns,
            data_digest=as_rows(case.rows).digest,
            seconds=seconds,
        )

    @property
    def rows(self) -> int:
        return len(self.targets)

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric of the task's kind."""
        return {name: metric(self.columns) for name, metric in METRICS[self.kind].items()}

    @property
    def value(self) -> float:
        """The task's own metric."""
        return METRICS[self.kind][self.metric](self.columns)

    @property
    def member_metrics(self) -> dict[str, float]:
        """The task's own metric over the members of an ensemble: of a member on average, and of the best one."""
        if not self.members:
            return {}
        values = [member.value for member in self.members]
        best = max(values) if self.higher_is_better else min(values)
        return {f"member_average_{self.metric}": float(np.mean(values)), f"member_best_{self.metric}": best}

    @property
    def higher_is_better(self) -> bool:
        return self.metric not in LOWER_IS_BETTER

    @property
    def is_correct(self) -> npt.NDArray[np.bool_]:
        """Per row: the expected label, or a text that matches exactly after SQuAD's normalisation."""
        if self.kind == "classification":
            return np.asarray(self.columns["predicted"] == self.columns["expected"])
        return np.asarray(self.columns["exact_match"] == 1.0)

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Rows by expected label, columns by predicted label, in the order of `labels`; [0, 0] for generation."""
        counts = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        if self.kind == "classification":
            np.add.at(counts, (self.columns["expected"], self.columns["predicted"]), 1)
        return counts

    @property
    def recalls(self) -> dict[str, float]:
        """Of each label that occurs in the rows, the share that was found."""
        counts = self.confusion
        return {
            name: float(counts[at, at] / counts[at].sum()) for at, name in enumerate(self.labels) if counts[at].sum()
        }

    def interval(self, *, confidence: float = 0.95, samples: int = 1000, seed: int = 0) -> Interval:
        """How far the task's metric would move on other rows of the same kind."""
        metric = METRICS[self.kind][self.metric]
        draw = np.random.default_rng(seed)
        values = [metric(resampled(self.columns, draw.integers(0, self.rows, size=self.rows))) for _ in range(samples)]
        low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(float(low), float(high), confidence)

    def to_json(self) -> dict[str, Any]:
        """A summary for attestations and reports; the single predictions stay behind."""
        interval = self.interval()
        return {
            "task": self.task,
            "metric": self.metric,
            "value": self.value,
            "interval": {"low": interval.low, "high": interval.high, "confidence": interval.confidence},
            "metrics": {**self.metrics, **self.member_metrics},
            "recalls": self.recalls,
            "confusion": self.confusion.tolist(),
            "rows": self.rows,
            "data_digest": self.data_digest,
            "seconds": round(self.seconds, 3),
        }


def resampled(columns: Columns, index: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
    """The same columns with the rows at `index`."""
    return {name: values[index] for name, values in columns.items()}
