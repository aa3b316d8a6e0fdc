"""One step of one prompt: clipping, AdamW and Adafactor, as functions of tensors, so that state is easily kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from promptstore.tuning.config import OptimiserName, TuneConfig

State = dict[str, Tensor]

ADAMW_BETAS, ADAMW_EPSILON = (0.9, 0.999), 1e-8
# Shazeer & Stern 2018, as Lester et al. 2021 use it: no relative step, no scaling by the parameter, no momentum.
ADAFACTOR_DECAY, ADAFACTOR_EPSILON, ADAFACTOR_CLIP = 0.8, 1e-30, 1.0


def start_state(name: OptimiserName, prompt: Tensor) -> State:
    """What the optimiser knows before its first step."""
    match name:
        case "adamw":
            return {"mean": torch.zeros_like(prompt), "square": torch.zeros_like(prompt)}
        case "adafactor":
            return {"rows": prompt.new_zeros(prompt.shape[0]), "columns": prompt.new_zeros(prompt.shape[1])}


def clip(gradient: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The gradient scaled down to norm `bound` if it is longer, and the norm it had. A bound of 0 leaves it."""
    norm = torch.linalg.vector_norm(gradient)
    if bound == 0:
        return gradient, norm
    return gradient * (bound / (norm + 1e-6)).clamp(max=1.0), norm


@torch.no_grad()
def apply_step(
    prompt: Tensor, gradient: Tensor, state: State, config: TuneConfig, step: int, *, scale: float = 1.0
) -> None:
    """Moves `prompt` and `state` in place. step: counted from 1. prompt, gradient: float32 [P, H]. scale: of rates."""
    rate = scale * config.learning_rate_at(step)
    prompt.mul_(1.0 - rate * config.weight_decay)
    prompt.sub_(_DIRECTIONS[config.optimiser](gradient, state, step), alpha=rate)


def _adamw(gradient: Tensor, state: State, step: int) -> Tensor:
    slow, slower = ADAMW_BETAS
    state["mean"].lerp_(gradient, 1 - slow)
    state["square"].mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
    deviation = (state["square"] / (1 - slower**step)).sqrt_().add_(ADAMW_EPSILON)
    return (state["mean"] / (1 - slow**step)) / deviation


def _adafactor(gradient: Tensor, state: State, step: int) -> Tensor:
    keep = 1.0 - step**-ADAFACTOR_DECAY
    squares: Tensor = gradient.square().add_(ADAFACTOR_EPSILON)
    state["rows"].lerp_(squares.mean(dim=1), 1 - keep)
    state["columns"].lerp_(squares.mean(dim=0), 1 - keep)
    rows = (state["rows"] / state["rows"].mean()).rsqrt_()[:, None]
    update: Tensor = gradient * rows * state["columns"].rsqrt()[None]
    size = torch.linalg.vector_norm(update) / update.numel() ** 0.5
    scale: Tensor = (size / ADAFACTOR_CLIP).clamp(min=1.0)
    return update / scale


_DIRECTIONS: dict[OptimiserName, Callable[[Tensor, State, int], Tensor]] = {"adamw": _adamw, "adafactor": _adafactor}
