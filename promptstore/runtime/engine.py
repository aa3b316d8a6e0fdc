"""Answers batches that mix tasks, versions, lengths and sampling; one thread owns it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptstore.errors import CorruptError
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.job import Failed, Finished, Generated, GenerateJob, Job, Scored, ScoreJob
from promptstore.runtime.memory import divide_and_retry, free_memory, is_out_of_memory
from promptstore.runtime.row import Decoding, Row
from promptstore.runtime.sampling import ChosenToken, Sampler
from promptstore.runtime.text_stream import TextStream


@dataclass(slots=True, eq=False)
class _Sequence:
    """One answer being generated."""

    job: GenerateJob
    sampler: Sampler
    text: TextStream
    tokens: int = 0
    last_token: int = -1
    is_done: bool = False


class Engine:
    """The model, the prompts on its device, and the answers being generated. Delivers through each job's `deliver`.

    An answer does not depend on what shares the batch: rows never see one another, and each has its own positions,
    mask and random numbers. What remains is rounding: sums in another order, about 1e-6 of a logit in float32.
    """

    def __init__(self, model: FrozenModel, bank: PromptBank[Any], decoding: Decoding) -> None:
        self._model = model
        self._bank = bank
        self._decoding = decoding
        self._running = decoding.start()
        self._sequences: list[_Sequence] = []
        self._end_ids = _end_ids(model)

    @property
    def running(self) -> int:
        """Answers that `step` would continue."""
        return len(self._sequences)

    def score(self, jobs: Sequence[ScoreJob]) -> None:
        """Answers `jobs` in one batch. One that fails alone is told so; the others are not harmed."""
        divide_and_retry(jobs, self._score)

    def start(self, jobs: Sequence[GenerateJob]) -> None:
        """Reads the inputs of `jobs` in one batch, delivers first tokens and adds them to those that run."""
        divide_and_retry(jobs, self._start)

    def step(self) -> None:
        """One more token for every running answer; finished and cancelled ones leave.

        Out of memory, the younger half of the answers is told so and the older half goes on.
        """
        self._retire()
        while self._sequences:
            try:
                states = self._running.step([sequence.last_token for sequence in self._sequences])
                tokens = self._choose(self._sequences, states)
            except Exception as error:  # noqa: BLE001 - the boundary between one batch and the server
                self._shed(error)
                continue
            self._append(self._sequences, tokens)
            self._retire()
            return

    def abort(self, error: Exception) -> None:
        """Ends every running answer with `error`."""
        self._drop_from(0, error)

    def _score(self, jobs: Sequence[ScoreJob]) -> None:
        states = self._decoding.read(self._rows(jobs))
        logits = self._label_logits(states, jobs)
        for job, row in zip(jobs, logits, strict=True):
            is_finite = all(map(math.isfinite, row))
            job.deliver(Scored(row, batch_rows=len(jobs)) if is_finite else Failed(_not_finite()))

    @torch.inference_mode()
    def _label_logits(self, states: Tensor, jobs: Sequence[ScoreJob]) -> list[tuple[float, ...]]:
        """Every row's own labels: one product per distinct set of labels, one copy to the host."""
        by_labels: dict[tuple[int, ...], list[int]] = {}
        for row, job in enumerate(jobs):
            by_labels.setdefault(tuple(job.label_token_ids), []).append(row)
        answers: list[tuple[float, ...]] = [()] * len(jobs)
        states = states.to(self._model.head.weight.device)
        for labels, rows in by_labels.items():
            ids = torch.tensor(labels, device=states.device)
            values = self._model.head.logits_of(states[torch.tensor(rows, device=states.device)], ids).tolist()
            for row, scores in zip(rows, values, strict=True):
                answers[row] = tuple(scores)
        return answers

    def _start(self, jobs: Sequence[GenerateJob]) -> None:
        newcomers = [
            _Sequence(job, Sampler(job.sampling), TextStream(self._model.tokenizer, job.sampling.stop)) for job in jobs
        ]
        states = self._running.join(self._rows(jobs))
        try:
            tokens = self._choose(newcomers, states)
        except Exception:
            self._running.keep(range(len(self._sequences)))
            raise
        self._sequences += newcomers
        self._append(newcomers, tokens)
        self._retire()

    @torch.inference_mode()
    def _choose(self, sequences: Sequence[_Sequence], states: Tensor) -> list[ChosenToken | None]:
        """The next token of each answer; `None` where its scores are not finite."""
        logits = self._model.head.logits(states.to(self._model.head.weight.device)).cpu()
        are_finite = logits.isfinite().all(dim=1).tolist()
        rows = zip(sequences, logits, are_finite, strict=True)
        return [sequence.sampler.choose(row) if is_finite else None for sequence, row, is_finite in rows]

    def _append(self, sequences: Sequence[_Sequence], tokens: Sequence[ChosenToken | None]) -> None:
        for sequence, token in zip(sequences, tokens, strict=True):
            deliver = sequence.job.deliver
            if token is None or token.token_id in self._end_ids:
                sequence.is_done = True
                deliver(Failed(_not_finite()) if token is None else Finished(sequence.text.finish(), "stop"))
                continue
            sequence.tokens += 1
            sequence.last_token = token.token_id
            deliver(Generated(token, sequence.text.push(token.token_id)))
            sequence.is_done = sequence.text.is_stopped or sequence.tokens == sequence.job.sampling.max_tokens
            if sequence.is_done:
                deliver(Finished(sequence.text.finish(), "stop" if sequence.text.is_stopped else "length"))

    def _retire(self) -> None:
        kept = [row for row, each in enumerate(self._sequences) if not each.is_done and not each.job.is_cancelled]
        if len(kept) < len(self._sequences):
            self._running.keep(kept)
            self._sequences = [self._sequences[row] for row in kept]

    def _shed(self, error: Exception) -> None:
        """Ends the younger half of the running answers if memory is short, all of them after any other failure."""
        self._drop_from(len(self._sequences) // 2 if is_out_of_memory(error) else 0, error)
        free_memory()

    def _drop_from(self, first: int, error: Exception) -> None:
        failed, self._sequences = self._sequences[first:], self._sequences[:first]
        self._running.keep(range(first))
        for sequence in failed:
            sequence.job.deliver(Failed(error))

    def _rows(self, jobs: Sequence[Job]) -> list[Row]:
        ready = {digest: self._bank.prepared(digest) for digest in dict.fromkeys(job.digest for job in jobs)}
        return [Row(ready[job.digest], job.input_ids) for job in jobs]


def _not_finite() -> CorruptError:
    return CorruptError(
        "the model's scores are NaN or infinite: the prompt drives this dtype out of range; "
        "serve in float32 or bfloat16, or tune the task again"
    )


def _end_ids(model: FrozenModel) -> frozenset[int]:
    """The tokens that end an answer, by the tokenizer and by the model's generation settings."""
    settings = getattr(model.network, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    found = [model.tokenizer.eos_token_id, *(configured if isinstance(configured, list | tuple) else [configured])]
    return frozenset(int(token) for token in found if token is not None)
