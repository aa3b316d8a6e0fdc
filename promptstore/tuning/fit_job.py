"""What is asked of a fit: one prompt, with everything that decides what comes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.errors import InvalidInputError
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.config import TuneConfig
from promptstore.tuning.events import Notice
from promptstore.tuning.examples import ExampleSet, draw_rows, encode_rows
from promptstore.tuning.metrics import main_metric
from promptstore.tuning.rows import Row, Rows, as_rows


@dataclass(frozen=True, slots=True, eq=False)
class FitJob:
    """One prompt to fit. name: unique within the fit; events carry it.

    validation: rows that choose the best step; judge the result on others. warm_start: a prompt of the same base model
    and of `config.num_virtual_tokens` virtual tokens, in place of `config.initialise`.
    """

    name: str
    task: TaskSpec
    config: TuneConfig
    train: Sequence[Row]
    validation: Sequence[Row]
    warm_start: SoftPrompt | None = None

    def identity(self, model: FrozenModel) -> str:
        """SHA-256 of all that decides the result, so that a checkpoint of another fit is not mistaken for ours."""
        start = None if self.warm_start is None else sha256_hex(self.warm_start.embeddings.tobytes())
        parts = {
            "model": list(model.fingerprint.identity),
            "dtype": str(model.dtype),
            "task": self.task.to_json(),
            "config": self.config.to_json(),
            "train": as_rows(self.train).digest,
            "validation": as_rows(self.validation).digest,
            "warm_start": start,
        }
        return sha256_hex(canonical_json(parts))


@dataclass(frozen=True, slots=True, eq=False)
class PreparedJob:
    """A job, checked, its rows encoded."""

    job: FitJob
    train: ExampleSet
    validation: ExampleSet


def prepare(model: FrozenModel, jobs: Sequence[FitJob]) -> list[PreparedJob]:
    """Checks and encodes every job before anything is computed; jobs that share rows share their encoding.

    Raises:
        InvalidInputError: no jobs, two of one name, rows that are empty, of one class or cannot be encoded, a warm
            start of another length.
        IncompatibleModelError: a warm start of another base model.
    """
    if not jobs or len({job.name for job in jobs}) != len(jobs):
        raise InvalidInputError(f"a fit needs jobs with different names, found {[job.name for job in jobs]}")
    encoder = _SharedEncoding(model)
    prepared = []
    for job in jobs:
        _check(model, job)
        config = job.config
        # The same validation rows for every seed, so that candidates are comparable.
        train = encoder.encode(job, job.train, config.max_train_rows, config.seed)
        validation = encoder.encode(job, job.validation, config.max_validation_rows, 0)
        _check_labels(job, train)
        prepared.append(PreparedJob(job, train, validation))
    return prepared


def notices(prepared: PreparedJob) -> Iterator[Notice]:
    """What a person should know about the rows of one job."""
    job, train = prepared.job, prepared.train
    if train.longest:
        yield Notice(
            job.name,
            f"{train.longest} of {len(train)} training rows are as long as allowed; what is longer loses the end of "
            "its longest field",
        )
    if job.task.kind == "classification":
        seen = {example.label for example in train.examples}
        for index, label in enumerate(job.task.label_names):
            if index not in seen:
                yield Notice(job.name, f"label {label!r} is not in the training rows, so it is not learnt")


class _SharedEncoding:
    def __init__(self, model: FrozenModel) -> None:
        self._model = model
        self._known: dict[tuple[int, int, int, int, int], ExampleSet] = {}

    def encode(self, job: FitJob, rows: Sequence[Row], count: int, seed: int) -> ExampleSet:
        virtual_tokens = job.config.num_virtual_tokens
        key = (id(job.task), id(rows), virtual_tokens, count, seed if count else 0)
        if key not in self._known:
            drawn: Rows = draw_rows(as_rows(rows), count, seed)
            self._known[key] = encode_rows(job.task, self._model, drawn, num_virtual_tokens=virtual_tokens)
        return self._known[key]


def _check(model: FrozenModel, job: FitJob) -> None:
    main_metric(job.task.kind, job.task.metric)
    if (start := job.warm_start) is None:
        return
    start.fingerprint.require_match(model.fingerprint, f"{job.name}: the warm start")
    if start.ensemble is not None:
        raise InvalidInputError(f"{job.name}: the warm start is an ensemble; start from one of its members")
    if start.num_virtual_tokens != job.config.num_virtual_tokens:
        raise InvalidInputError(
            f"{job.name}: the warm start has {start.num_virtual_tokens} virtual tokens, num_virtual_tokens is "
            f"{job.config.num_virtual_tokens}; make them equal"
        )


def _check_labels(job: FitJob, train: ExampleSet) -> None:
    seen = {example.label for example in train.examples}
    if job.task.kind == "classification" and len(seen) == 1:
        name = job.task.label_names[seen.pop()]
        raise InvalidInputError(f"{job.name}: every training row is labelled {name!r}; there is nothing to tell apart")
