"""What a fit says while it runs: plain values, one after the other, for whoever asked for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from promptstore.core.prompt import SoftPrompt

StopReason = Literal["budget", "patience", "diverged"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know and that stops nothing. job: `None` if it concerns all."""

    job: str | None
    message: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of one prompt. loss: mean over the step's rows. gradient_norm: before clipping.

    examples_per_s, tokens_per_s, memory_bytes: of all prompts together since the last reports; tokens are positions
    that the model computed, memory is the device's peak, 0 on CPU.
    """

    job: str
    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    examples_per_s: float
    tokens_per_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """A look at the validation rows. metric, value: what the best prompt is chosen by; loss: mean over the rows."""

    job: str
    step: int
    metric: str
    value: float
    loss: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came out for one prompt.

    prompt: the one that did best in validation. last: as it was after the last step. metric, value: of the best.
    reason: the budget of steps was used up, patience ran out, or the fit diverged; then `cause` says how, and `prompt`
    is the best one from before.
    """

    prompt: SoftPrompt
    last: SoftPrompt
    best_step: int
    steps: int
    metric: str
    value: float
    reason: StopReason
    cause: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class FitFinished:
    """A prompt left the fit."""

    job: str
    result: FitResult


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """Everything up to here survives the process. steps: of each prompt that is still being fitted."""

    steps: Mapping[str, int]


FitEvent = Notice | StepReport | ValidationReport | FitFinished | CheckpointSaved
