"""How the next token of one sequence is chosen, from its own logits and its own random numbers."""

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from promptstore.errors import InvalidInputError

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """What one request asks of generation. The default is greedy: what a task's evaluation measured.

    temperature: 0 is greedy; top_p: the smallest set of tokens with at least this probability is kept.
    stop: generation ends before the first of these texts; they are not part of the answer.
    seed: equal seeds give equal answers, whatever shares the batch; `None` draws one.
    top_logprobs: how many alternatives to report per token; `None` reports no log-probabilities at all.

    Raises:
        InvalidInputError: names the parameter and its range.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, value, is_valid, expected in (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0.0 <= self.temperature <= 2.0, "0 to 2"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "more than 0, at most 1"),
            ("stop", list(self.stop), "" not in self.stop and len(self.stop) <= 8, "at most 8 texts, none empty"),
            ("seed", self.seed, self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer"),
            (
                "top_logprobs",
                self.top_logprobs,
                self.top_logprobs is None or 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS,
                f"0 to {MAX_TOP_LOGPROBS}",
            ),
        ):
            if not is_valid:
                raise InvalidInputError(f"{name} is {value!r}, expected {expected}")


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token and, where asked for, its log-probability and the likeliest alternatives (raw, before temperature)."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence; owns that sequence's random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor, likeliest: int | None = None) -> ChosenToken:
        """The next token. logits: [V], any dtype and device; likeliest: the first of the highest, where it is known."""
        row = logits.float().cpu()
        if self._generator is not None:
            token_id = self._draw(row, self._generator)
        else:
            token_id = int(row.argmax()) if likeliest is None else likeliest
        if self._sampling.top_logprobs is None:
            return ChosenToken(token_id)
        logprobs = row.log_softmax(-1)
        values, ids = logprobs.topk(min(self._sampling.top_logprobs, len(row)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return ChosenToken(token_id, float(logprobs[token_id]), top)

    def _draw(self, row: Tensor, generator: torch.Generator) -> int:
        """Inverse of the cumulative distribution over the nucleus, in float64: one random number per token."""
        probabilities = (row.double() / self._sampling.temperature).softmax(-1)
        ordered, ids = probabilities.sort(descending=True, stable=True)
        cumulative = ordered.cumsum(-1)
        kept = int((cumulative - ordered < self._sampling.top_p).sum())
        point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[kept - 1]
        return int(ids[min(int((cumulative[:kept] <= point).sum()), kept - 1)])
