"""One prompt while it is fitted: its values, its optimiser, its place in the data and the best it has been."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from promptstore.core.prompt import SoftPrompt
from promptstore.lm.frozen import FrozenModel
from promptstore.tuning.events import FitResult, StopReason
from promptstore.tuning.examples import Example
from promptstore.tuning.fit_job import PreparedJob
from promptstore.tuning.initialise import initialise
from promptstore.tuning.metrics import LOWER_IS_BETTER, METRICS, Columns, main_metric
from promptstore.tuning.optimiser import apply_step, clip, start_state
from promptstore.tuning.passes import Group
from promptstore.tuning.residual import RATE, fold, gradients, start_residual


class Record(NamedTuple):
    """One step, its figures still on the device."""

    step: int
    loss: Tensor
    norm: Tensor


@dataclass(slots=True)
class Best:
    """The best validation so far. value: of the task's metric; loss breaks ties."""

    step: int
    value: float
    loss: float
    looks_since: int


class Fitting:
    """The prompt's master copy is float32 [P, H] on the model's device, and the only tensor with a gradient."""

    def __init__(self, model: FrozenModel, prepared: PreparedJob) -> None:
        self.prepared = prepared
        self.job = prepared.job
        self.config = prepared.job.config
        self.prompt = self._first_values(model).requires_grad_()
        self._tensors = self._parameters()
        self._states = {name: start_state(self.config.optimiser, each) for name, each in self._tensors.items()}
        self.step = 0
        self.best_prompt = self.prompt.detach().clone()
        self.best = Best(step=0, value=-inf, loss=inf, looks_since=0)
        self.cause: str | None = None
        self.seconds = 0.0
        self.records: list[Record] = []
        self._is_alive = torch.ones((), dtype=torch.bool, device=self.prompt.device)
        self._order: tuple[int, list[int]] | None = None

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def group(self) -> Group:
        return Group.of(self.prompt, self.prepared.train)

    @property
    def label_token_ids(self) -> Sequence[int]:
        """The labels to choose between, empty where the loss is over the whole vocabulary."""
        return self.prepared.train.label_token_ids if self.config.loss == "labels" else ()

    @property
    def metric(self) -> str:
        """What the best prompt is chosen by; texts are not decoded during a fit, so token F1 is left to the loss."""
        name = main_metric(self.job.task.kind, self.job.task.metric)
        return "perplexity" if name == "token_f1" else name

    @property
    def is_validation_due(self) -> bool:
        return self.step % self.config.evaluate_every == 0 or self.step == self.config.steps

    def is_report_due(self, every: int) -> bool:
        return self.step % every == 0 or self.is_validation_due

    @property
    def reason(self) -> StopReason | None:
        """Why the fit of this prompt is over, `None` while it is not."""
        if self.cause is not None:
            return "diverged"
        if self.step >= self.config.steps:
            return "budget"
        return "patience" if 0 < self.config.patience <= self.best.looks_since else None

    def next_rows(self) -> list[Example]:
        """The rows of the coming step, decided by seed and step alone: every row once an epoch, in a new order."""
        examples, size = self.prepared.train.examples, self.config.batch_size
        places = range(self.step * size, (self.step + 1) * size)
        return [examples[self._epoch(place // len(examples))[place % len(examples)]] for place in places]

    def update(self, loss: Tensor) -> None:
        """One optimiser step with the gradient that is there. Nothing here waits for the device.

        A step whose loss or gradient is no number changes nothing, and neither does any later one; `judge`
        finds out.
        """
        if self.prompt.grad is None:
            raise ValueError("there is no gradient to step with")
        self.step += 1
        gradient, norm = clip(self.prompt.grad, self.config.clip_norm)
        self._is_alive = self._is_alive & torch.isfinite(norm) & torch.isfinite(loss.to(norm.device))
        self._move(torch.where(self._is_alive, gradient, 0.0))
        self.prompt.grad = None
        self.records.append(Record(self.step, loss, norm))

    def take_records(self) -> list[Record]:
        """The steps since the last call."""
        taken, self.records = self.records, []
        return taken

    def judge(self, step: int, loss: float, norm: float) -> None:
        """Looks at a step's figures once they are here."""
        if self.cause is None and not (isfinite(loss) and isfinite(norm)):
            rate = self.config.learning_rate_at(step)
            self.cause = (
                f"loss {loss:.4g} and gradient norm {norm:.4g} at step {step}, learning rate {rate:.4g}: "
                "lower learning_rate, or set clip_norm"
            )

    def validated(self, columns: Columns) -> tuple[float, float, bool]:
        """Takes in a validation: value, loss, and whether it is the best so far."""
        value = METRICS[self.job.task.kind][self.metric](columns)
        scores = columns["log_probability"]
        loss = float(-np.sum(scores) / np.sum(columns.get("target_tokens", np.ones_like(scores))))
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        is_best = self.best.step == 0 or (sign * value, -loss) > (sign * self.best.value, -self.best.loss)
        if is_best:
            self.best = Best(self.step, value, loss, looks_since=0)
            self.best_prompt = self.prompt.detach().clone()
        else:
            self.best.looks_since += 1
        return value, loss, is_best

    def result(self, model: FrozenModel, reason: StopReason) -> FitResult:
        return FitResult(
            prompt=_soft_prompt(self.best_prompt, model),
            last=_soft_prompt(self.prompt, model),
            best_step=self.best.step,
            steps=self.step,
            metric=self.metric,
            value=self.best.value,
            reason=reason,
            cause=self.cause,
            seconds=self.seconds,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides `figures`."""
        kept = {"prompt": self.prompt.detach(), "best": self.best_prompt}
        return {**kept, **self._inner_tensors()}

    def figures(self) -> dict[str, Any]:
        best = self.best
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": [best.step, best.value, best.loss, best.looks_since],
            "cause": self.cause,
        }

    def restore(self, tensors: Mapping[str, Tensor], figures: Mapping[str, Any]) -> None:
        """Goes back to where `tensors` and `figures` were taken."""
        with torch.no_grad():
            self.prompt.copy_(tensors["prompt"])
            self.best_prompt.copy_(tensors["best"])
            for name, tensor in self._inner_tensors().items():
                tensor.copy_(tensors[name])
        self.step, self.seconds, self.cause = int(figures["step"]), float(figures["seconds"]), figures["cause"]
        self.best = Best(*figures["best"])

    def _first_values(self, model: FrozenModel) -> Tensor:
        if self.job.warm_start is not None:
            return torch.tensor(self.job.warm_start.embeddings, device=model.device)
        return initialise(model, self.job.task, self.config, self.prepared.train)

    def _parameters(self) -> dict[str, Tensor]:
        """What the optimiser moves: the prompt itself, or what it is folded from."""
        if self.config.residual_width == 0:
            return {"prompt": self.prompt.detach()}
        return start_residual(self.prompt, self.config.residual_width, self.config.seed)

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        is_folded = self.config.residual_width > 0
        shares = gradients(self._tensors, gradient) if is_folded else {"prompt": gradient}
        for name, tensor in self._tensors.items():
            before = tensor.clone()
            scale = RATE if name in ("down", "up") else 1.0
            apply_step(tensor, shares[name], self._states[name], self.config, self.step, scale=scale)
            tensor.copy_(torch.where(self._is_alive, tensor, before))
        if is_folded:
            self.prompt.copy_(fold(self._tensors))

    def _inner_tensors(self) -> dict[str, Tensor]:
        """By the name in a checkpoint: what only the optimiser sees."""
        states = {f"{of}.{name}": each for of, state in self._states.items() for name, each in state.items()}
        folded = {f"residual.{name}": each for name, each in self._tensors.items() if self.config.residual_width > 0}
        return {**{f"optimiser.{name}": each for name, each in states.items()}, **folded}

    def _epoch(self, epoch: int) -> list[int]:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
            self._order = (epoch, torch.randperm(len(self.prepared.train), generator=generator).tolist())
        return self._order[1]


def _soft_prompt(values: Tensor, model: FrozenModel) -> SoftPrompt:
    return SoftPrompt(values.detach().cpu().numpy(), model.fingerprint)
