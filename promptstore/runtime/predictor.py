"""Answers for many rows of one task in this process: for batch work and notebooks, without a server."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from promptstore.core.prompt import SoftPrompt
from promptstore.core.task import TaskSpec
from promptstore.lm.encoding import TaskEncoder
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.decoding import choose_decoding
from promptstore.runtime.engine import Engine
from promptstore.runtime.job import Event, Failed, Finished, Generated, GenerateJob, Scored, ScoreJob
from promptstore.runtime.sampling import Sampling

DIGEST = "0" * 64


@dataclass(slots=True)
class Prediction:
    """The answer for one row. text: the label's name, or what was generated. probabilities: of a classification."""

    text: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    prompt: SoftPrompt
    prefix_ids: tuple[int, ...] = ()
    is_after: bool = False


class Predictor:
    """One prompt and its task on one model. Not for several threads.

    Raises:
        IncompatibleModelError: the prompt belongs to another model.
    """

    def __init__(self, model: FrozenModel, task: TaskSpec, prompt: SoftPrompt) -> None:
        prompt.fingerprint.require_match(model.fingerprint, f"the prompt for {task.name}")
        decoding, _ = choose_decoding(model)
        bank: PromptBank[_Source] = PromptBank(model, decoding)
        bank.hold(DIGEST, lambda: _Source(prompt, is_after=task.placement == "after"))
        self._engine = Engine(model, bank, decoding)
        self._task = task
        answer_tokens = 1 if task.kind == "classification" else task.max_target_tokens
        self._encoder = TaskEncoder(task, model, reserved=prompt.num_virtual_tokens + answer_tokens)

    def predict(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 16) -> list[Prediction]:
        """One answer for each row, in order; generation is greedy, as it was when the prompt was judged.

        Raises:
            InvalidInputError: a row lacks a field of the template.
        """
        inputs = [self._encoder.encode(row) for row in rows]
        order = sorted(range(len(inputs)), key=lambda at: len(inputs[at]))
        answers = [Prediction() for _ in inputs]
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [_Answer(self._task, answers[at]) for at in places]
            if self._task.kind == "classification":
                labels = self._encoder.label_token_ids
                self._engine.score(
                    [ScoreJob(DIGEST, inputs[at], labels, each.take) for at, each in zip(places, batch, strict=True)]
                )
            else:
                sampling = Sampling(self._task.max_target_tokens)
                self._engine.start(
                    [
                        GenerateJob(DIGEST, inputs[at], sampling, each.take)
                        for at, each in zip(places, batch, strict=True)
                    ]
                )
                while self._engine.running:
                    self._engine.step()
            for each in batch:
                each.raise_failure()
        return answers

    def stream(
        self, rows: Iterator[Mapping[str, str]], *, chunk: int = 256, batch_size: int = 16
    ) -> Iterator[tuple[Mapping[str, str], Prediction]]:
        """Each row with its answer, in order, holding `chunk` rows at a time."""
        held: list[Mapping[str, str]] = []
        for row in rows:
            held.append(row)
            if len(held) == chunk:
                yield from zip(held, self.predict(held, batch_size=batch_size), strict=True)
                held = []
        yield from zip(held, self.predict(held, batch_size=batch_size), strict=True)


class _Answer:
    """Puts together what the engine delivers for one row."""

    def __init__(self, task: TaskSpec, prediction: Prediction) -> None:
        self._task = task
        self._prediction = prediction
        self._failure: Exception | None = None

    def take(self, event: Event) -> None:
        match event:
            case Scored(logits):
                probabilities = _softmax(logits)
                named = dict(zip(self._task.label_names, probabilities, strict=True))
                self._prediction.text = max(named, key=lambda name: named[name])
                self._prediction.probabilities = named
            case Generated(_, text) | Finished(text):
                self._prediction.text += text
            case Failed(error):
                self._failure = error

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    weights = [math.exp(value - largest) for value in logits]
    return [weight / sum(weights) for weight in weights]
