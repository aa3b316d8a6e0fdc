"""How one prompt is fitted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from promptstore.core.digest import canonical_json, sha256_hex
from promptstore.core.ensemble import COMBINATIONS, MAX_MEMBERS, Combination
from promptstore.core.prompt import MAX_VIRTUAL_TOKENS
from promptstore.errors import InvalidInputError
from promptstore.tuning.initialiser import parse_initialiser

OptimiserName = Literal["adamw", "adafactor"]
ScheduleName = Literal["constant", "linear", "cosine"]
LossName = Literal["labels", "vocabulary"]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """Settings of one fit. The defaults are the ones that did best over several tasks (infra/docs/tuning.md).

    initialise: where the first values come from; see `promptstore.tuning.initialiser`.
    warmup_steps: steps in which the learning rate rises linearly from 0; part of `steps`.
    loss: of a classification, cross-entropy over its labels' first tokens ("labels") or all tokens ("vocabulary").
    clip_norm: bound of the norm of the prompt's gradient, 0 for none.
    residual_width: of the hidden layer through which the prompt is fitted (`promptstore.tuning.residual`), 0 for none.
    evaluate_every: steps between validations; the best prompt seen is the result.
    patience: validations without a better result before the fit stops early, 0 for never.
    max_train_rows, max_validation_rows: at most so many rows, drawn by `seed`; 0 for all. Validation rows are those
        looked at during the fit; the final evaluation is the caller's.
    ensemble: how many prompts are fitted, in the same passes, with seeds from `seed` on, to answer as one.
    combination: how an ensemble's answers become one (`promptstore.core.ensemble`).

    Raises:
        InvalidInputError: a value is out of its range; the message names it.
    """

    num_virtual_tokens: int = 20
    initialise: str = "examples"
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 0.03
    schedule: ScheduleName = "linear"
    warmup_steps: int = 10
    steps: int = 200
    batch_size: int = 16
    loss: LossName = "vocabulary"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    residual_width: int = 0
    evaluate_every: int = 50
    patience: int = 0
    seed: int = 0
    max_train_rows: int = 0
    max_validation_rows: int = 200
    ensemble: int = 1
    combination: Combination = "mean"

    def __post_init__(self) -> None:
        self._check_types()
        _require(1 <= self.num_virtual_tokens <= MAX_VIRTUAL_TOKENS, "num_virtual_tokens", f"1 to {MAX_VIRTUAL_TOKENS}")
        for name, choices in (("optimiser", OptimiserName), ("schedule", ScheduleName), ("loss", LossName)):
            _require_choice(name, getattr(self, name), get_args(choices))
        _require_choice("combination", self.combination, COMBINATIONS)
        _require(1 <= self.ensemble <= MAX_MEMBERS, "ensemble", f"1 to {MAX_MEMBERS}")
        for name in ("steps", "batch_size", "evaluate_every"):
            _require(getattr(self, name) >= 1, name, "at least 1")
        counts = ("warmup_steps", "patience", "residual_width", "max_train_rows", "max_validation_rows")
        for name in (*counts, "weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, name, "at least 0")
        _require(0 < self.learning_rate <= 1000, "learning_rate", "above 0 and at most 1000")
        _require(self.warmup_steps <= self.steps, "warmup_steps", "at most `steps`")
        _require(0 <= self.seed < 2**63, "seed", "0 to 2^63 - 1")
        parse_initialiser(self.initialise)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "TuneConfig":
        """The defaults with `values` over them: a task's `tuning` table, or what the caller of a flow gave.

        Raises:
            InvalidInputError: a name that is no setting (the message suggests the nearest), or a bad value.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known settings: {', '.join(known)}"
                raise InvalidInputError(f"unknown tuning setting {name!r}; {hint}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Without what says nothing: how a single prompt would be combined."""
        values = asdict(self)
        if self.ensemble == 1:
            del values["ensemble"], values["combination"]
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of the settings, for a version's provenance."""
        return sha256_hex(canonical_json(self.to_json()))

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of one step, counted from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        return self.learning_rate * _decay(
            self.schedule, (step - 1 - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        )

    def _check_types(self) -> None:
        """TOML and HTTP give values of any type; whole numbers serve where a fraction is expected."""
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not type(default):
                raise InvalidInputError(
                    f"tuning setting {field.name} is {value!r}, expected {type(default).__name__} such as {default!r}"
                )


def _decay(schedule: ScheduleName, progress: float) -> float:
    """The share of the learning rate left after `progress`, 0 to 1, of the steps behind the warm-up."""
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def _require(holds: bool, name: str, expected: str) -> None:  # noqa: FBT001 - a check reads best with its claim first
    if not holds:
        raise InvalidInputError(f"tuning setting {name} must be {expected}")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        nearest = get_close_matches(value, choices, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise InvalidInputError(f"tuning setting {name} is {value!r}, expected one of {', '.join(choices)}{hint}")
