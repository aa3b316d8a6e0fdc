"""Answers batches that mix tasks, versions, lengths and sampling; one thread owns it."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from promptstore.core.ensemble import Ensemble
from promptstore.errors import InvalidInputError
from promptstore.lm.end_tokens import end_token_ids
from promptstore.lm.frozen import FrozenModel
from promptstore.runtime.bank import PromptBank
from promptstore.runtime.job import Failed, Finished, Generated, GenerateJob, Job, Scored, ScoreJob, not_finite
from promptstore.runtime.memory import divide_and_retry, free_memory, is_out_of_memory
from promptstore.runtime.row import Decoding, PreparedPrompt, Row
from promptstore.runtime.sampling import ChosenToken, Sampler
from promptstore.runtime.text_stream import TextStream

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Sequence:
    """One answer being generated."""

    job: GenerateJob
    sampler: Sampler
    text: TextStream
    token_ids: list[int] = field(default_factory=list)
    is_done: bool = False
    is_second_try: bool = False


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
        self._set_aside: list[_Sequence] = []
        self._room_rows = 0
        self._end_ids = end_token_ids(model.tokenizer, getattr(model.network, "generation_config", None))

    @property
    def is_padded(self) -> bool:
        return self._decoding.is_padded

    @property
    def running(self) -> int:
        """Answers that `step` would continue."""
        return len(self._sequences) + len(self._set_aside)

    def score(self, jobs: Sequence[ScoreJob]) -> None:
        """Answers `jobs` in one batch. One that fails alone is told so; the others are not harmed."""
        divide_and_retry(jobs, self._score)

    def start(self, jobs: Sequence[GenerateJob]) -> None:
        """Reads the inputs of `jobs` in one batch, delivers first tokens and adds them to those that run."""
        divide_and_retry(jobs, self._start)

    def step(self) -> None:
        """One more token for every running answer; finished and cancelled ones leave.

        Out of memory, the younger half of the answers is set aside, and each goes on where it was when one of the
        others has left; behind the network all are, and half of them are read again at once. One that memory runs out
        for twice is told so.
        """
        self._retire()
        self._take_back()
        while self._sequences:
            has_gone_on = False
            try:
                states = self._running.step([sequence.token_ids[-1] for sequence in self._sequences])
                has_gone_on = True
                tokens = self._choose(self._sequences, states)
            except Exception as error:  # noqa: BLE001 - the boundary between one batch and the server
                self._shed(error, has_gone_on=has_gone_on)
                continue
            self._append(self._sequences, tokens)
            self._retire()
            return

    def abort(self, error: Exception) -> None:
        """Ends every running answer with `error`."""
        self._fail(self._leave_from(0) + self._set_aside, error)
        self._set_aside = []

    def _score(self, jobs: Sequence[ScoreJob]) -> None:
        """An ensemble's input is one row for each member."""
        ready = self._ready(jobs)
        asked = [(job, member) for job in jobs for member in ready[job.digest].members]
        states = self._decoding.read([Row(member, job.input_ids) for job, member in asked])
        logits = iter(self._label_logits(states, [job for job, _ in asked]))
        answers = [_combined(logits, ready[job.digest].ensemble) for job in jobs]
        self._note_batch(jobs, len(jobs))
        for job, row in zip(jobs, answers, strict=True):
            is_finite = all(map(math.isfinite, row))
            job.deliver(Scored(row, batch_rows=len(jobs)) if is_finite else Failed(not_finite()))

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
        self._note_batch(jobs, len(self._sequences))
        self._append(newcomers, tokens)
        self._retire()

    @torch.inference_mode()
    def _choose(self, sequences: Sequence[_Sequence], states: Tensor) -> list[ChosenToken | None]:
        """The next token of each answer; `None` where its highest score is not finite, as with any NaN among them."""
        logits = self._model.head.logits(states.to(self._model.head.weight.device)).cpu()
        likeliest = torch.from_numpy(logits.numpy().argmax(axis=1))  # torch's takes five to ten times as long
        highest = logits.gather(1, likeliest[:, None])[:, 0]
        rows = zip(sequences, logits, likeliest.tolist(), highest.isfinite().tolist(), strict=True)
        return [sequence.sampler.choose(row, best) if is_finite else None for sequence, row, best, is_finite in rows]

    def _append(self, sequences: Sequence[_Sequence], tokens: Sequence[ChosenToken | None]) -> None:
        """Gives every sequence its token or ends it, so that none loses step with its row in the cache."""
        for sequence, token in zip(sequences, tokens, strict=True):
            try:
                self._extend(sequence, token)
            except Exception as error:  # noqa: BLE001 - the boundary between one answer and the others
                sequence.is_done = True
                self._fail([sequence], error)

    def _extend(self, sequence: _Sequence, token: ChosenToken | None) -> None:
        deliver = sequence.job.deliver
        if token is None or token.token_id in self._end_ids:
            sequence.is_done = True
            deliver(Failed(not_finite()) if token is None else Finished(sequence.text.finish(), "stop"))
            return
        sequence.token_ids.append(token.token_id)
        deliver(Generated(token, sequence.text.push(token.token_id)))
        sequence.is_done = sequence.text.is_stopped or len(sequence.token_ids) == sequence.job.sampling.max_tokens
        if sequence.is_done:
            deliver(Finished(sequence.text.finish(), "stop" if sequence.text.is_stopped else "length"))

    def _retire(self) -> None:
        kept = [row for row, each in enumerate(self._sequences) if not each.is_done and not each.job.is_cancelled]
        if len(kept) < len(self._sequences):
            self._running.keep(kept)
            self._sequences = [self._sequences[row] for row in kept]

    def _shed(self, error: Exception, *, has_gone_on: bool) -> None:
        """Sets the younger half of the running answers aside if memory is short; after any other failure ends all.

        has_gone_on: the rows have taken the step, without a token for it, so that all are to be read again.
        """
        self._room_rows = len(self._sequences) // 2
        leaving = self._leave_from(self._room_rows if is_out_of_memory(error) and not has_gone_on else 0)
        if is_out_of_memory(error):
            self._set_aside += [sequence for sequence in leaving if not sequence.is_second_try]
            leaving = [sequence for sequence in leaving if sequence.is_second_try]
        self._fail(leaving, error)
        free_memory()
        if not self._sequences:
            self._take_back()

    def _take_back(self) -> None:
        """Goes on with answers that were set aside, one by one, as far as others have left since."""
        self._set_aside = [sequence for sequence in self._set_aside if not sequence.job.is_cancelled]
        while self._set_aside and len(self._sequences) < max(1, self._room_rows):
            sequence = self._set_aside.pop(0)
            sequence.is_second_try = True
            try:
                self._go_on(sequence)
            except Exception as error:  # noqa: BLE001 - the boundary between one answer and the server
                self._fail([sequence], error)

    def _go_on(self, sequence: _Sequence) -> None:
        """Reads an input again with what was generated behind it: the next token is the one that was to come."""
        (row,) = self._rows([sequence.job])
        states = self._running.join([row._replace(output_ids=sequence.token_ids)])
        try:
            tokens = self._choose([sequence], states)
        except Exception:
            self._running.keep(range(len(self._sequences)))
            raise
        self._sequences.append(sequence)
        self._append([sequence], tokens)
        self._retire()

    def _leave_from(self, first: int) -> list[_Sequence]:
        """Takes the answers from place `first` on out of the batch."""
        leaving, self._sequences = self._sequences[first:], self._sequences[:first]
        self._running.keep(range(first))
        return leaving

    @staticmethod
    def _fail(sequences: Sequence[_Sequence], error: Exception) -> None:
        for sequence in sequences:
            try:
                sequence.job.deliver(Failed(error))
            except Exception:
                logger.exception("an answer that failed could not be told so")

    @staticmethod
    def _note_batch(jobs: Sequence[Job], rows: int) -> None:
        for job in jobs:
            job.batch_rows = rows

    def _rows(self, jobs: Sequence[Job]) -> list[Row]:
        ready = self._ready(jobs)
        if any(prepared.ensemble is not None for prepared in ready.values()):
            raise InvalidInputError("an ensemble scores labels and generates no text; ask one of its members")
        return [Row(ready[job.digest], job.input_ids) for job in jobs]

    def _ready(self, jobs: Sequence[Job]) -> Mapping[str, PreparedPrompt]:
        found = {digest: self._bank.find(digest) for digest in dict.fromkeys(job.digest for job in jobs)}
        for job in jobs:
            job.place = job.place or found[job.digest][1]
        return {digest: prepared for digest, (prepared, _) in found.items()}


def _combined(logits: Iterator[tuple[float, ...]], ensemble: Ensemble | None) -> tuple[float, ...]:
    """The next answer: one row's logits, or those of all members together."""
    if ensemble is None:
        return next(logits)
    return tuple(ensemble.combine(list(islice(logits, ensemble.members))).tolist())
